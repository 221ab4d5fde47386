"""A run as a bundle for a board: what does not compare is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pruners
from harness.bundle import conformance, content
from harness.bundle.accept import accept, comparable
from harness.bundle.content import DIRTY, SUBSET, Bundle
from harness.bundle.files import write
from harness.store import code, run_folder
from harness.store.tables import verify
from pruners.base import Pruner, UserError


def submit(
    run: Path,
    out: Path | None = None,
    by: str = "",
    url: str = "",
    licence: str = "",
    subset: bool = False,
    allow_dirty: bool = False,
) -> list[str]:
    """Write the bundle of a run, and verify it as a board does.

    Args:
        out: zip file; by default named after the run, in the working folder.
        by: who submits, as the board shows it.
        url: https address of the source of methods that are not this project's.
        licence: of that source.
        subset: whether a run of a part of its splits is meant, which the board marks.
        allow_dirty: whether one by code that no commit holds is meant, which the board marks.

    Returns:
        What was written, in sentences.

    Raises:
        UserError: the run does not compare, or the bundle cannot be written.
    """
    if not run_folder.run_info(run):
        raise UserError(
            f"There is no {run_folder.RUN} in {str(run)!r}; give the folder of a finished run, e.g. "
            f"results/runs/<id>."
        )
    if not run_folder.finished(run):
        _refuse(run, "it is not finished; give its command again with --out and this folder")
    verify(run)
    bundle = content.pack(run, by, url, licence)
    _marked(run, bundle, subset, allow_dirty)
    if (why := next(comparable(bundle), None)) is not None:
        _refuse(run, why)
    for name, method in bundle.facts["methods"].items():
        pruner = _pruner(run, name, method)
        method["own"] = type(pruner).__module__.partition(".")[0] == "pruners"
        method["reference"] = pruner.reference
        passed = conformance.conform(pruner)
        method["conformance"] = {"passed": passed, "checks": conformance.checks_digest()}
        if not method["own"] and not (by and url and licence):
            raise UserError(
                f"{name} is not this project's, and a board shows only what can be looked at; give --by "
                f"NAME, --url with the https address of its source, and --licence with what that is under."
            )
    target = out or Path(f"{bundle.facts['run'][:16]}.zip")
    before = target.read_bytes() if target.is_file() else None
    write(bundle, target)
    try:
        told = accept(target)
    except UserError:
        if before is None:
            target.unlink()
        else:
            target.write_bytes(before)
        raise
    size = f"{target}: {target.stat().st_size / 1024:.0f} KiB"
    return [*told, f"{size}; to join a board, put it into its folder board/ and ask for a pull request"]


def _refuse(run: Path, why: str) -> NoReturn:
    raise UserError(f"The run in {str(run)!r} cannot be submitted: {why}.")


def _marked(run: Path, bundle: Bundle, subset: bool, allow_dirty: bool) -> None:
    """See that what a board marks is meant."""
    marks = bundle.facts["marks"]
    if SUBSET in marks and not subset:
        limit = max(int(plan.get("limit") or 0) for plan in bundle.facts["plans"])
        _refuse(
            run,
            f"it rests on the first {limit} images of its splits (--limit {limit}); give its command "
            f"again with --limit 0, or give --part, which marks it",
        )
    if DIRTY in marks and not allow_dirty:
        said = bundle.facts["code"]["commit"]
        why = f"its code differs from commit {said[:10]}" if said else "no commit of its code is known"
        _refuse(
            run,
            f"{why}, so nobody can run it again; run from a clean checkout, or give --allow-dirty, "
            f"which marks it",
        )


def _pruner(run: Path, name: str, method: dict[str, Any]) -> Pruner:
    """The method as it is here, if it is the one that ran."""
    try:
        (pruner,) = pruners.parse(name)
    except UserError as error:
        raise UserError(
            f"{name} of the run in {str(run)!r} cannot be looked at here ({error}); give its file with "
            f"--plugin."
        ) from error
    if code.of_pruner(type(pruner)) != method["source"]:
        _refuse(
            run,
            f"the source of {name} is not the one that ran; go back to that code, or run again with it as it "
            f"is now",
        )
    return pruner
