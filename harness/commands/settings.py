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
    from harness.toml_files import load_toml
    from pruners.errors import UserError, nearest

    try:
        content = load_toml(path)
    except OSError as error:
        raise UserError(
            f"The settings file {str(path)!r} cannot be read ({error.strerror}); give --settings a TOML file."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The settings file {str(path)!r} is no TOML ({error}); write lines such as limit = 2."
        ) from error
    options: dict[str, Any] = {}
    names = []
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
        try:
            found[str(options[key].name)] = _value(context, options[key], key, value)
        except Exception as error:  # ours, click's, or that of newer versions of typer
            said = str(getattr(error, "message", "") or error).rstrip(".")
            raise UserError(f"{str(path)!r} sets {name} to {value!r}: {said}.") from error
    return found


def _value(context: typer.Context, parameter: Any, key: str, value: Any) -> Any:
    """A value as the option takes it for its default.

    Raises:
        Exception: the option takes no such value.
    """
    if not all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value])):
        raise ValueError("write a text in quotes, a number, true, false, or a list of them")
    if isinstance(value, bool) != bool(getattr(parameter, "is_flag", False)):
        raise ValueError(
            f"--{key} takes a text or a number" if isinstance(value, bool) else "write true or false"
        )
    if f"--{key}" in parameter.secondary_opts:  # no-share = true
        value = not value
    if isinstance(value, list) and not parameter.multiple:
        value = ",".join(map(str, value))
    if parameter.multiple and not isinstance(value, list):
        value = [value]
    parameter.process_value(context, value)
    return value
