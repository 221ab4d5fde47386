"""Command-line options that several commands take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Pruners = Annotated[
    str, typer.Option("--pruners", help="'all', names, globs, parameters: 'litelvlm,fastv(layer=3),vis*'")
]
Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", help="official GLaMM checkpoint folder")]
Clip = Annotated[str | None, typer.Option("--clip", help="CLIP folder or hub name")]
SamDims = Annotated[
    Path | None, typer.Option("--sam-dims", help="json with the grounding encoder's numbers, if not ViT-H")
]
Data = Annotated[Path | None, typer.Option("--data", help="folder that holds Refer_Segm/, or own data")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, float64")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin", help="Python file that registers pruners, metrics or data sets (can be repeated)"
    ),
]


def numbers(text: str) -> tuple[int, ...]:
    """The whole numbers of `--budgets`.

    Raises:
        UserError: there are none, or something else.
    """
    from pruners.base import UserError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(
        re.fullmatch("-?[0-9]{1,18}", part) for part in parts
    ):  # int() also takes 6_4 and digits of other scripts
        raise UserError(
            f"--budgets takes whole numbers, not {text[:100]!r}; write e.g. --budgets 64,128,192."
        )
    found = tuple(dict.fromkeys(map(int, parts)))
    if not found:
        raise UserError("--budgets is empty; write e.g. --budgets 64,128,192.")
    return found
