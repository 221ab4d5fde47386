"""`--costs`: which costs a run gets, and writing them into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone
    from harness.engine.runner import Plan, Split


def kind(asked: str | None, backbone: Backbone, tensor_parallel: int) -> str:
    """Which costs a backbone gets: what was asked for, or its default.

    Raises:
        UserError: its forward pass is not known in stages.
    """
    if asked is None:
        asked = "off" if tensor_parallel > 1 else backbone.costs_by_default
    if asked != "off" and backbone.staged is None:
        raise UserError(f"The costs of {backbone.name} are not known; give --costs off.")
    return asked


def write_costs(kind: str, plan: Plan, splits: Sequence[Split], backbone: Backbone, folder: Path) -> None:
    """Write the costs of a run into its folder; what is there already is not done again.

    Raises:
        UserError: the folder cannot be written.
    """
    if kind == "off":
        return
    from harness.cost import measure

    try:
        (measure.measure_costs if kind == "measured" else measure.project_costs)(
            plan, splits, backbone, folder
        )  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"Writing costs to {str(folder)!r} failed ({error.strerror}); nothing recorded is lost, "
            "make room and give the same command again, or --costs off."
        ) from error
