"""`--settings FILE.toml`: options that one does not want to type, under their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

NOT_HERE = ("settings", "debug", "version", "local_rank")


def given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line or in a settings file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


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

    from pruners.errors import UserError, nearest, reason

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The settings file {str(path)!r} cannot be read ({error.strerror}); give --settings a TOML file."
        ) from error
    except ValueError as error:  # TOMLDecodeError and text that is no UTF-8
        raise UserError(
            f"The settings file {str(path)!r} is no TOML ({reason(error)}); write lines such as limit = 2."
        ) from error
    options, names = {}, []
    for parameter in context.command.params:
        if parameter.name not in NOT_HERE:
            names.append(parameter.opts[0].removeprefix("--"))
            for text in (*parameter.opts, *parameter.secondary_opts):
                options[text.removeprefix("--")] = parameter
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = name.replace("_", "-")
        if key not in options:
            raise UserError(
                f"{str(path)!r} sets {name!r}, which is no option; there are "
                f"{', '.join(names)}.{nearest(key, options)}"
            )
        parameter = options[key]
        _check_kind(path, name, value)
        if f"--{key}" in parameter.secondary_opts:  # no-share = true
            value = not value
        if isinstance(value, list) and not parameter.multiple:
            value = ",".join(map(str, value))
        if parameter.multiple and not isinstance(value, list):
            value = [value]
        try:
            parameter.type_cast_value(context, value)
        except Exception as error:  # click's, or that of newer versions of typer
            raise UserError(
                f"{str(path)!r} sets {name} = {value!r}, which --{key} does not take ({_said(error)})."
            ) from error
        found[str(parameter.name)] = value
    return found


def _check_kind(path: Path, name: str, value: Any) -> None:
    """Raise UserError unless a value is one that can stand on a command line, or a list of such."""
    from pruners.errors import UserError

    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str | int | float | bool):
            raise UserError(
                f"{str(path)!r} sets {name} to {type(one).__name__} {one!r}; write a text in quotes, a number, "
                f"true, false, or a list of them."
            )


def _said(error: Exception) -> str:
    from pruners.errors import reason

    return str(getattr(error, "message", "") or reason(error)).rstrip(".")
