"""What `python -m harness list` prints: pruners, backbones, which runs on which, data sets, metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import backbones
import pruners
from backbones.registry import signal
from harness import metrics
from harness.data import datasets
from pruners.base import LLM_PATCHES, LLM_TEXT_EMBEDS, Pruner

# what is at hand where a model's vision tower cannot be looked into, e.g. behind an inference server
BEHIND_PROJECTOR = frozenset({LLM_PATCHES, LLM_TEXT_EMBEDS})
RUNS, LACKS = "yes", "-"


def lines() -> Iterator[str]:
    """All that can be named on the command line, line by line; nothing is loaded."""
    yield "pruners"
    for name in pruners.names():
        cls = pruners.get(name)
        yield (
            f"  {_signature(cls)}  {cls.kind}, {cls.stage}; reads {_needs(cls) or 'patches'}; {cls.reference}"
        )
    yield "backbones"
    for name in backbones.names():
        family = backbones.get(name)
        told = (family.__doc__ or "").partition("\n")[0]
        yield f"  {_signature(family)}  {told} {family.reference}"
        yield f"    protocols: {'; '.join(f'{word}: {what}' for word, what in family.protocols.items())}"
    yield from _matrix()
    yield "data sets"
    for one in datasets():
        yield f"  {', '.join(one.names(None)) or one.name}  {one.told or one.reference}"
    yield "metrics"
    for metric in map(metrics.get, metrics.names()):
        yield f"  {metric.name}  {metric.title}: {metric.meaning}; {metric.reference}"


def rows() -> list[dict[str, Any]]:
    """The same, one row per name: what kind of thing it is, and of a pruner where it runs."""
    models = [backbones.get(name)() for name in backbones.names()]
    found: list[dict[str, Any]] = []
    for name in pruners.names():
        cls = pruners.get(name)
        found.append(
            {"list": "pruner", "name": name, "parameters": _signature(cls)}
            | {"kind": cls.kind, "stage": cls.stage, "reads": _needs(cls) or "patches"}
            | {"reference": cls.reference, "deployable": deployable(cls())}
            | {f"runs_on_{model.name}": not model.lacks(cls()) for model in models}
        )
    for name in backbones.names():
        family = backbones.get(name)
        told = (family.__doc__ or "").partition("\n")[0]
        known = {"parameters": _signature(family), "reference": family.reference, "told": told}
        found.append({"list": "backbone", "name": name} | known)
    for one in datasets():
        for name in one.names(None) or [one.name]:
            found.append({"list": "data set", "name": name, "reference": one.reference, "told": one.told})
    for metric in map(metrics.get, metrics.names()):
        told = f"{metric.title}: {metric.meaning}"
        found.append(
            {"list": "metric", "name": metric.name, "reference": metric.reference, "told": told}
            | {"unit": metric.unit}
        )
    return found


def deployable(pruner: Pruner) -> bool:
    """Whether a method needs nothing but features behind the projector and the text's embeddings, so that it
    could run where nothing else of the model is at hand."""
    return pruner.stage == "tower" and pruner.needs <= BEHIND_PROJECTOR


def _matrix() -> Iterator[str]:
    """Which pruner runs on which backbone, why the others do not, and which could be deployed."""
    models = [backbones.get(name)() for name in backbones.names()]
    methods = [pruners.get(name)() for name in pruners.names()]
    wide = max(len(method.name) for method in methods)
    yield "which pruner runs on which backbone"
    yield f"  {'':<{wide}}  {'  '.join(model.name for model in models)}"
    reasons = []
    for method in methods:
        lacking = [model.lacks(method) for model in models]
        reasons += [reason for reason in lacking if reason]
        marks = (
            f"{LACKS if reason else RUNS:<{len(model.name)}}"
            for reason, model in zip(lacking, models, strict=True)
        )
        yield f"  {method.name:<{wide}}  {'  '.join(marks)}".rstrip()
    yield from (f"  {reason}" for reason in reasons)
    able = [method.name for method in methods if method.kind == "method" and deployable(method)]
    controls = [method.name for method in methods if method.kind == "control" and deployable(method)]
    yield "could be deployed where only features behind the projector are at hand"
    yield f"  methods: {', '.join(able) or 'none'}; controls: {', '.join(controls) or 'none'}"


def _signature(cls: type[Any]) -> str:
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)
    return f"{cls.name}({', '.join(f'{field.name}={field.default!r}' for field in fields)})"


def _needs(cls: type[Pruner]) -> str:
    return ", ".join(sorted(map(signal, cls.needs)))
