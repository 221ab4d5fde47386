"""`--costs measured`: every cell's faithful forward pass, counted once and timed in rounds that hold all
cells."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.conversation import build
from backbones.glamm.stages import Inputs, forward, prefill, prepare
from backbones.parts.cuts import cutting
from harness import metrics
from harness.cost import meters, projection
from harness.cost.choices import Recall
from harness.cost.formulas import Shape, language_model_macs
from harness.cost.lines import lines_of_run
from harness.cost.store import BASELINE, LOCK, SCHEMA, Ledgers, complete, counted, key, timed
from harness.engine.cells import Line
from harness.engine.runner import Plan, Split
from harness.store import code
from harness.store.journal import alone
from pruners.base import UserError

ROUNDS = 12
BASELINE_RUNS = 3  # of `none` in a round, so that one lucky pass of it does not decide every row's comparison
CANDIDATES = 64  # conversations among which the one of median length is taken


@dataclass(frozen=True)
class Measured:
    """The conversation that stands for a run: its model inputs, and where it comes from."""

    inputs: Inputs
    sample: str
    expressions: tuple[int, ...]


def typical(plan: Plan, splits: Sequence[Split], backbone: GlammBackbone) -> Measured:
    """The conversation of median length among the first ones of all splits.

    Raises:
        UserError: there is no readable sample.
    """
    share = max(1, CANDIDATES // max(1, len(splits)))
    talks = []
    for split in splits:
        found = [
            (sample, talk)
            for sample in split.samples[:share]
            for talk in backbone.conversations(
                sample.id, [one.text for one in sample.expressions], plan.protocol, plan.seed
            )
        ]
        talks += found[:share]
    talks.sort(key=lambda pair: len(backbone.tokenizer.encode(build(pair[1].turns))))
    for sample, talk in talks[len(talks) // 2 :] + talks[: len(talks) // 2]:
        try:
            image, masks = sample.image(), sample.masks()
        except UserError:
            continue
        truth = masks[list(talk.expressions)] == metrics.FOREGROUND
        return Measured(prepare(backbone, image, talk.turns, sample.id, truth), sample.id, talk.expressions)
    raise UserError(
        "Costs cannot be measured: no image of the chosen splits can be read; give other --datasets or --costs off."
    )


def count(backbone: GlammBackbone, inputs: Inputs, line: Line) -> dict[str, Any]:
    """What one cell executes: multiply-adds by stage, the second count of the language model, and live
    bytes."""
    model, pruner = backbone.model, line.pruner
    counting = meters.counter()
    ledger = meters.mac_ledger(counting)
    with counting:
        passed = forward(model, inputs, pruner, line.budget, ledger)
    expected = language_model_macs(passed.lengths, Shape.of(model.language_model.config))
    if (counted_macs := int(ledger.spent()["prefill"])) != expected:
        raise UserError(
            f"The decoder layers' multiply-adds were counted as {counted_macs:,}, and their lengths give {expected:,}: "
            "an operator is hidden from the counter; give --attn sdpa or eager, or --costs off."
        )
    llm, patches = model.language_model, inputs.grid[0] * inputs.grid[1]
    depth, choices = llm.config.num_hidden_layers, Recall()
    chosen, given_again = (
        cutting(pruner, line.budget, patches, depth, inputs.sample, choose)
        for choose in (choices.first, choices.again)
    )
    visual = torch.zeros(1, passed.lengths[0] - inputs.text, llm.config.hidden_size).to(
        backbone.device, inputs.small.dtype
    )
    with torch.no_grad():
        if chosen is not None:
            prefill(llm, inputs.before, visual, inputs.after, chosen)
        second = meters.fvcore_macs(
            llm, lambda given: prefill(llm, inputs.before, given, inputs.after, given_again).hidden, visual
        )
    return {
        "kind": "counts",
        "pruner": line.name,
        "budget": line.budget,
        "lengths": passed.lengths,
        "macs": {stage: int(macs) for stage, macs in ledger.spent().items()},
        "fvcore": second,
        "peak": peaks(backbone, inputs, line),
    }


def peaks(backbone: GlammBackbone, inputs: Inputs, line: Line) -> dict[str, int]:
    """Highest rise of live bytes in every stage, and of the whole run."""
    if backbone.device.startswith("cuda"):
        watch = meters.Peaks(meters.DeviceMemory(backbone.device))
        forward(backbone.model, inputs, line.pruner, line.budget, watch, checked=False)
    else:
        live = meters.LiveStorages()
        watch = meters.Peaks(live)
        with live:
            forward(backbone.model, inputs, line.pruner, line.budget, watch, checked=False)
    return watch.rise | {"run": watch.top}


def clock(backbone: GlammBackbone, inputs: Inputs, line: Line) -> dict[str, float]:
    """Milliseconds of every stage of one pass and of the whole, and the processor time that it took without a
    GPU."""
    watch = meters.Clock(backbone.device)
    watch.finish()
    begin = time.process_time()
    forward(backbone.model, inputs, line.pruner, line.budget, watch, checked=False)
    busy = 1000 * (time.process_time() - begin)
    watch.finish()
    found = (
        watch.spent()
        | {"total": watch.whole()}
        | ({} if backbone.device.startswith("cuda") else {"compute": busy})
    )
    return {stage: round(spent, 4) for stage, spent in found.items()}


def code_of(backbone: GlammBackbone, lines: Sequence[Line]) -> dict[str, Any]:
    """Digests of all code whose costs a file holds: what evaluates, what measures, and every pruner's source
    by its name."""
    return {
        "evaluation": code.of_backbone(type(backbone)),
        "meters": code.of_all(code.costs()),
        "sources": {line.name: code.of_pruner(type(line.pruner)) for line in lines},
    }


def header(backbone: GlammBackbone, chosen: Measured, lines: Sequence[Line]) -> dict[str, Any]:
    """What was measured where, and by which code; a file continues only under the same."""
    cuda = backbone.device.startswith("cuda")
    return {
        "schema": SCHEMA,
        "costs": "measured",
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "device": backbone.device,
        "device_name": torch.cuda.get_device_name(backbone.device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": backbone.dtype,
        "attn": backbone.attn,
        "element": chosen.inputs.small.element_size(),
        **code_of(backbone, lines),
        "shape": asdict(Shape.of(backbone.model.language_model.config)),
        "text": chosen.inputs.text,
        "sample": chosen.sample,
        "expressions": list(chosen.expressions),
    }


def measure(
    plan: Plan, splits: Sequence[Split], backbone: GlammBackbone, folder: Path, rounds: int | None = None
) -> None:
    """Write the costs of a run into its folder; what is there already is not measured again.

    Every round runs each row once, in an order of its own, so that drift hits `none` and pruned rows alike;
    comparisons are made within a round. A round that was interrupted is measured again as a whole.
    """
    rounds = ROUNDS if rounds is None else rounds
    lines = lines_of_run(plan, backbone, folder)
    wanted = [key(line.name, line.budget) for line in lines]
    if complete(folder, "measured", code_of(backbone, lines), wanted, rounds):
        return
    with alone(folder / LOCK):
        if not complete(
            folder, "measured", code_of(backbone, lines), wanted, rounds
        ):  # whoever was in here before may have done it
            _measure(typical(plan, splits, backbone), lines, backbone, folder, rounds)


def _measure(
    chosen: Measured, lines: Sequence[Line], backbone: GlammBackbone, folder: Path, rounds: int
) -> None:
    ledgers = Ledgers(folder, json.loads(json.dumps(header(backbone, chosen, lines))))
    try:
        there, done = counted(ledgers.lines), timed(ledgers.lines)
        left = [number for number in range(rounds) if number not in done]
        passes = len(lines) + BASELINE_RUNS - 1
        with tqdm(
            total=len(lines) + passes * rounds, unit="pass", desc="costs", disable=not sys.stderr.isatty()
        ) as bar:
            for line in lines:
                if key(line.name, line.budget) not in there:
                    ledgers.append(count(backbone, chosen.inputs, line))
                bar.update()
            bar.update(passes * len(done))
            if left:  # warm-up; counting was one, but under modes that take other paths
                for line in lines:
                    forward(backbone.model, chosen.inputs, line.pruner, line.budget)
            for number in left:
                turns = [*lines, *[line for line in lines if line.name == BASELINE] * (BASELINE_RUNS - 1)]
                found = []
                for line in random.Random(number).sample(turns, len(turns)):
                    found.append([key(line.name, line.budget), clock(backbone, chosen.inputs, line)])
                    bar.update()
                ledgers.append({"kind": "round", "number": number, "ms": found})
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{backbone.device} is out of memory while measuring costs; give --costs off or projected."
        ) from error
    finally:
        ledgers.close()


def project(plan: Plan, splits: Sequence[Split], backbone: GlammBackbone, folder: Path) -> None:
    """Write the costs of a run from shapes alone, for the same conversation; multiply-adds and bytes, no
    times."""
    lines = lines_of_run(plan, backbone, folder)
    wanted = [key(line.name, line.budget) for line in lines]
    if complete(folder, "projected", code_of(backbone, lines), wanted):
        return
    with alone(folder / LOCK):
        if not complete(folder, "projected", code_of(backbone, lines), wanted):
            _project(typical(plan, splits, backbone), lines, backbone, folder)


def _project(chosen: Measured, lines: Sequence[Line], backbone: GlammBackbone, folder: Path) -> None:
    inputs = chosen.inputs
    prompt = projection.Prompt(inputs.text, inputs.before.shape[1], *inputs.words["input_ids"].shape)
    ledgers = Ledgers(
        folder, json.loads(json.dumps(header(backbone, chosen, lines) | {"costs": "projected"}))
    )
    try:
        there, shapes = counted(ledgers.lines), projection.shapes_of(backbone.model)
        projected = projection.project(shapes, lines, prompt, attn=backbone.attn, dtype=inputs.small.dtype)
        for line in projection.counts_lines(projected):
            if key(line["pruner"], line["budget"]) not in there:
                ledgers.append(line)
    finally:
        ledgers.close()
