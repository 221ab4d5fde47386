"""`--settings FILE.toml`: options that one does not want to type, under their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

NOT_HERE = ("settings", "debug", "local_rank")


def apply_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of the option: make the file's values the command's defaults.

    Raises:
        UserError: there is no such file, it is no TOML, or it names something that is no option.
    """
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **_values(context, path)}
    return path


def _values(context: typer.Context, path: Path) -> dict[str, Any]:
    import tomllib

    from pruners.base import UserError, nearest

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The settings file {str(path)!r} cannot be read ({error.strerror}); give --settings a TOML file."
        ) from error
    except ValueError as error:  # TOMLDecodeError and text that is no UTF-8
        raise UserError(f"The settings file {str(path)!r} is no TOML ({error}).") from error
    options = {}
    for parameter in context.command.params:
        if parameter.name not in NOT_HERE:
            for text in (*parameter.opts, *parameter.secondary_opts):
                options[text.removeprefix("--")] = parameter
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = name.replace("_", "-")
        if key not in options:
            raise UserError(
                f"{str(path)!r} sets {name!r}, which is no option; there are "
                f"{', '.join(options)}.{nearest(key, options)}"
            )
        parameter = options[key]
        if f"--{key}" in parameter.secondary_opts:  # no-share = true
            value = not value
        if isinstance(value, list) and not parameter.multiple:
            value = ",".join(map(str, value))
        found[str(parameter.name)] = [value] if parameter.multiple and not isinstance(value, list) else value
    return found
