"""Names to pruner classes: the built-in ones, entry points of installed packages, and plugin files."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

from pruners import plugins
from pruners.base import LayerPruner, Pruner, stage_of
from pruners.errors import nearest
from pruners.plugins import plugin_source, source_of
from pruners.registration import Registry
from pruners.views import CUT_KINDS, LAYER_KINDS, PLAIN_KINDS, Need

__all__ = ["PRUNERS", "get", "load_plugin", "names", "parse", "plugin_source", "register", "source_of"]

FACTS = ("name", "reference", "kind", "stage", "stochastic", "needs", "budget_kind", "seed_written")


class Pruners(Registry[Pruner]):
    """All pruners."""

    what, base, home, group, facts = "pruner", Pruner, "pruners", "groundprune.pruners", FACTS
    example = "'litelvlm,fastv(layer=3)'"
    empty = "No pruner was given; try --pruners all, or names from `python -m harness list`."

    def wrong(self, cls: type[Pruner]) -> str | None:
        """What is wrong with the class attributes that the harness reads."""
        return _wrong_facts(cls)

    def wrong_fields(self, cls: type[Pruner], hints: dict[str, Any]) -> str | None:
        """What is wrong with its seed or its layer."""
        if cls.stochastic and hints.get("seed") is not int:
            return "is stochastic without a seed; give it a field seed: int = 0"
        if cls.cuts is LayerPruner.cuts and hints.get("layer") is not int:
            return (
                "prunes inside the language model without a layer; give it a field layer: int = 2, or "
                "define cuts"
            )
        return None

    def finish(self, made: Pruner, given: Collection[str]) -> None:
        """Note a seed that was written: random(seed=0) is that draw alone, random is one of several."""
        if made.stochastic and "seed" in given:
            object.__setattr__(made, "seed_written", True)

    def order(self, name: str) -> tuple[Any, ...]:
        """`none`, then the methods, then the other controls, each by name."""
        return {"none": -1}.get(name, self.known[name].kind == "control"), name


def _wrong_facts(cls: type[Pruner]) -> str | None:
    """What is wrong with the class attributes that the harness reads."""
    if cls.kind not in ("method", "control"):
        return f"is of the kind {cls.kind!r}; a kind is 'method' or 'control'"
    if wrong := _wrong_stage(cls):
        return wrong
    if not isinstance(cls.stochastic, bool):
        return f"says stochastic = {cls.stochastic!r}; it is True or False"
    if not isinstance(cls.needs, frozenset):
        return (
            f"declares its needs as {type(cls.needs).__name__}; write needs = frozenset({{Need(...), ...}})"
        )
    for need in cls.needs:
        if not isinstance(need, Need):
            return f"needs {need!r}, which is no pruners.Need"
        if wrong := _wrong_need(need, cls.stage):
            return wrong
    return None


def _wrong_stage(cls: type[Pruner]) -> str | None:
    """What is wrong with the places where it says that it acts."""
    if cls.stage != stage_of(cls):
        return (
            f"has the stage {cls.stage!r} and functions of {stage_of(cls)!r}; leave it out, the "
            f"functions tell"
        )
    if cls.stage == "layer" and not issubclass(cls, LayerPruner):
        return "chooses inside the language model alone; make it a subclass of LayerPruner"
    states = cls.cuts is not Pruner.cuts
    if states != (cls.stage != "tower"):
        has, lacks = (
            ("cuts", "cut(tokens, count)") if states else ("cut", "cuts(budget, patches, num_layers)")
        )
        return f"defines {has} and not {lacks}; a method that prunes inside the language model has both"
    return None


def _wrong_need(need: Need, stage: str) -> str | None:
    """What is wrong with a signal that it declares."""
    kinds = LAYER_KINDS + PLAIN_KINDS + CUT_KINDS
    if need.kind not in kinds:
        return f"needs {need.kind!r}; there are {', '.join(kinds)}.{nearest(need.kind, kinds)}"
    of_layer = type(need.layer) is int or (isinstance(need.layer, Fraction) and 0 < need.layer <= 1)
    if of_layer if need.kind not in LAYER_KINDS else not of_layer:
        rule = (
            "a layer: -1 is the last, Fraction(1, 2) half of all" if need.kind in LAYER_KINDS else "no layer"
        )
        return f"needs {need.kind!r} of layer {need.layer!r}; that kind takes {rule}"
    if need.kind in CUT_KINDS and stage == "tower":
        return f"needs {need.kind!r}, which is there at a cut alone, and makes none; define cuts and cut"
    if need.kind not in CUT_KINDS and stage == "layer":
        return (
            f"needs {need.kind!r}, which a view has, and sees none; at a cut there are {', '.join(CUT_KINDS)}"
        )
    return None


PRUNERS = Pruners()
register, get, names, parse = PRUNERS.register, PRUNERS.get, PRUNERS.names, PRUNERS.parse


def load_plugin(path: str | Path) -> list[str]:
    """Import a Python file that registers something; returns the names of the pruners that it added.

    Raises:
        UserError: no such file, it cannot be imported, or it registers nothing at all.
    """
    return plugins.import_plugin(path).get(PRUNERS.what, [])
