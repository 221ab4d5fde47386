"""`--version`: what is installed here, without importing it."""

from __future__ import annotations

import typer

SHOWN = ("torch", "transformers")


def show_version(asked: bool) -> None:
    """Callback of the option: print versions and end.

    Raises:
        typer.Exit: it was asked.
    """
    if asked:
        print(version_line())
        raise typer.Exit


def version_line() -> str:
    """This project's version, the commit of a checkout, and the versions of what its numbers hang on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from harness.store.provenance import checkout

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    code = checkout()
    commit = code["commit"] and code["commit"][:12] + (", with changes" if code["dirty"] else "")
    packages = ", ".join(f"{name} {installed(name)}" for name in SHOWN)
    built = f" (commit {commit})" if commit else ""
    return f"groundprune {installed('groundprune')}{built}, {packages}, Python {platform.python_version()}"
