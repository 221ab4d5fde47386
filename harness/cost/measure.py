"""`--costs measured`: every cell's faithful forward pass, counted once and timed in rounds that hold all
cells."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backbones.base import Backbone
from backbones.costs import Inputs, Staged
from harness import metrics
from harness.cost import meters, projection
from harness.cost.choices import Recall
from harness.cost.formulas import language_model_macs
from harness.cost.lines import lines_of_run
from harness.cost.store import BASELINE, LOCK, SCHEMA, Ledgers, complete, cost_key, counted, timed
from harness.data.sample import Sample
from harness.engine.cells import Line
from harness.engine.evaluate import conversations
from harness.engine.runner import Plan, Split
from harness.progress import stage
from harness.store import code, provenance
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


def staged_of(backbone: Backbone) -> Staged:
    """The backbone's forward pass in stages.

    Raises:
        UserError: it has none.
    """
    if (found := backbone.staged) is None:
        raise UserError(f"The costs of {backbone.name} are not known; give --costs off.")
    return found


def typical(plan: Plan, splits: Sequence[Split], backbone: Backbone, staged: Staged) -> Measured:
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
            for talk in conversations(backbone, sample, plan.protocol or backbone.protocol, plan.seed)
        ]
        talks += found[:share]
    talks.sort(key=lambda pair: staged.length(pair[1].turns))
    for sample, talk in talks[len(talks) // 2 :] + talks[: len(talks) // 2]:
        try:
            seen, truth = _seen(sample, list(talk.expressions), backbone, staged)
            inputs = staged.prepare(seen, talk.turns, sample.id, truth)
        except UserError:
            continue
        return Measured(inputs, sample.id, talk.expressions)
    raise UserError(
        "Costs cannot be measured: nothing of the chosen splits can be read; give other --datasets or "
        "--costs off."
    )


def _seen(
    sample: Sample, asked: list[int], backbone: Backbone, staged: Staged
) -> tuple[Any, NDArray[np.bool_]]:
    """An image, or a clip, and the truth about some expressions in what is shown of it."""
    if backbone.medium == "image":
        return sample.image(), sample.masks()[asked] == metrics.FOREGROUND
    clip = sample.clip()
    return clip, np.stack([sample.masks(frame)[asked] == metrics.FOREGROUND for frame in staged.shown(clip)])


def count(staged: Staged, inputs: Inputs, line: Line) -> dict[str, Any]:
    """What one cell executes: multiply-adds by stage, the second count of the language model, and live
    bytes.

    Raises:
        UserError: the counts differ from what the lengths give, or a stage ran that the model does not name.
    """
    counting = meters.counter()
    ledger = meters.mac_ledger(counting)
    with counting:
        passed = staged.forward(inputs, line.pruner, line.budget, ledger)
    macs = {stage: int(spent) for stage, spent in ledger.spent().items()}
    if unknown := {stage.rpartition("/")[2] for stage in macs} - set(staged.stages):
        raise UserError(
            f"The forward pass ran {', '.join(sorted(unknown))}, which is none of its stages "
            f"({', '.join(staged.stages)}); name it there, or give --costs off."
        )
    expected = language_model_macs(passed.lengths, staged.shape)
    if macs["prefill"] != expected:
        raise UserError(
            f"The decoder layers' multiply-adds were counted as {macs['prefill']:,}, and their lengths "
            f"give {expected:,}: "
            "an operator is hidden from the counter; give --attn sdpa or eager, or --costs off."
        )
    return {
        "kind": "counts",
        "pruner": line.name,
        "budget": line.budget,
        "lengths": passed.lengths,
        "macs": macs,
        "fvcore": second(staged, inputs, line, passed.lengths[0] - inputs.prompt.text),
        "peak": peaks(staged, inputs, line),
    }


def second(staged: Staged, inputs: Inputs, line: Line, entering: int) -> int:
    """fvcore's count of the language model's layers.

    Args:
        entering: visual tokens in the first one.
    """
    choices = Recall()
    asked, again = (
        staged.traced(inputs, line.pruner, line.budget, entering, choose)
        for choose in (choices.first, choices.again)
    )
    with torch.no_grad():
        if line.pruner.cuts(line.budget, staged.patches, staged.shape.layers):
            asked.run(asked.example)
        return meters.fvcore_macs(again.weights, again.run, again.example)


def peaks(staged: Staged, inputs: Inputs, line: Line) -> dict[str, int]:
    """Highest rise of live bytes in every stage, and of the whole run."""
    if staged.device.startswith("cuda"):
        watch = meters.Peaks(meters.DeviceMemory(staged.device))
        staged.forward(inputs, line.pruner, line.budget, watch, checked=False)
    else:
        live = meters.LiveStorages()
        watch = meters.Peaks(live)
        with live:
            staged.forward(inputs, line.pruner, line.budget, watch, checked=False)
    return watch.rise | {"run": watch.top}


def clock(staged: Staged, inputs: Inputs, line: Line) -> dict[str, float]:
    """Milliseconds of every stage of one pass and of the whole, and the processor time that it took without a
    GPU."""
    watch = meters.Clock(staged.device)
    watch.finish()
    begin = time.process_time()
    staged.forward(inputs, line.pruner, line.budget, watch, checked=False)
    busy = 1000 * (time.process_time() - begin)
    watch.finish()
    found = (
        watch.spent()
        | {"total": watch.whole()}
        | ({} if staged.device.startswith("cuda") else {"compute": busy})
    )
    return {stage: round(spent, 4) for stage, spent in found.items()}


def code_of(backbone: Backbone, lines: Sequence[Line]) -> dict[str, Any]:
    """Digests of all code whose costs a file holds: what evaluates, what measures, and every pruner's source
    by its name."""
    return {
        "evaluation": code.of_backbone(type(backbone)),
        "meters": code.of_all(code.costs(type(staged_of(backbone)))),
        "sources": {line.name: code.of_pruner(type(line.pruner)) for line in lines},
    }


def header(backbone: Backbone, staged: Staged, chosen: Measured, lines: Sequence[Line]) -> dict[str, Any]:
    """What was measured where, and by which code; a file continues only under the same."""
    cuda = backbone.device.startswith("cuda")
    return {
        "schema": SCHEMA,
        "costs": "measured",
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "device": backbone.device,
        "device_name": torch.cuda.get_device_name(backbone.device) if cuda else "cpu",
        **provenance.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": backbone.dtype,
        "attn": backbone.attn,
        "element": staged.dtype.itemsize,
        **code_of(backbone, lines),
        "shape": asdict(staged.shape),
        "text": chosen.inputs.prompt.text,
        "sample": chosen.sample,
        "expressions": list(chosen.expressions),
    }


def measure_costs(
    plan: Plan, splits: Sequence[Split], backbone: Backbone, folder: Path, rounds: int | None = None
) -> None:
    """Write the costs of a run into its folder; what is there already is not measured again.

    Every round runs each row once, in an order of its own, so that drift hits `none` and pruned rows alike;
    comparisons are made within a round. A round that was interrupted is measured again as a whole.
    """
    rounds = ROUNDS if rounds is None else rounds
    lines = lines_of_run(plan, backbone, folder)
    wanted = [cost_key(line.name, line.budget) for line in lines]
    if complete(folder, "measured", code_of(backbone, lines), wanted, rounds):
        return
    with alone(folder / LOCK):
        # whoever was in here before may have done it
        if not complete(folder, "measured", code_of(backbone, lines), wanted, rounds):
            staged = staged_of(backbone)
            chosen = typical(plan, splits, backbone, staged)
            ledgers = Ledgers(folder, json.loads(json.dumps(header(backbone, staged, chosen, lines))))
            _measure(ledgers, chosen.inputs, lines, staged, rounds)


def _measure(ledgers: Ledgers, inputs: Inputs, lines: Sequence[Line], staged: Staged, rounds: int) -> None:
    try:
        there, done = counted(ledgers.lines), timed(ledgers.lines)
        left = [number for number in range(rounds) if number not in done]
        passes = len(lines) + BASELINE_RUNS - 1
        already = sum(cost_key(line.name, line.budget) in there for line in lines) + passes * len(done)
        with stage("measuring costs", len(lines) + passes * rounds, "passes", already) as progress:
            for line in lines:
                if cost_key(line.name, line.budget) not in there:
                    ledgers.append(count(staged, inputs, line))
                    progress.advance(note=f"counting {line.name} at {line.budget}")
            if left:  # warm-up; counting was one, but under modes that take other paths
                for line in lines:
                    progress.at(progress.done, "warming up")
                    staged.forward(inputs, line.pruner, line.budget)
            for number in left:
                progress.at(progress.done, f"round {number + 1} of {rounds}")
                turns = [*lines, *[line for line in lines if line.name == BASELINE] * (BASELINE_RUNS - 1)]
                found = []
                for line in random.Random(number).sample(turns, len(turns)):
                    found.append([cost_key(line.name, line.budget), clock(staged, inputs, line)])
                    progress.advance()
                ledgers.append({"kind": "round", "number": number, "ms": found})
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{staged.device} is out of memory while measuring costs; give --costs off or projected."
        ) from error
    finally:
        ledgers.close()


def project_costs(plan: Plan, splits: Sequence[Split], backbone: Backbone, folder: Path) -> None:
    """Write the costs of a run from shapes alone, for the same conversation; multiply-adds and bytes, no
    times."""
    lines = lines_of_run(plan, backbone, folder)
    wanted = [cost_key(line.name, line.budget) for line in lines]
    if complete(folder, "projected", code_of(backbone, lines), wanted):
        return
    with alone(folder / LOCK):
        if not complete(folder, "projected", code_of(backbone, lines), wanted):
            staged = staged_of(backbone)
            chosen = typical(plan, splits, backbone, staged)
            head = header(backbone, staged, chosen, lines) | {"costs": "projected"}
            ledgers = Ledgers(folder, json.loads(json.dumps(head)))
            _project(ledgers, chosen.inputs, lines, staged, backbone.attn)


def _project(ledgers: Ledgers, inputs: Inputs, lines: Sequence[Line], staged: Staged, attn: str) -> None:
    try:
        there = counted(ledgers.lines)
        model = staged.shapes(inputs)
        with stage("projecting costs", note=f"{len(lines)} rows from shapes"):
            projected = projection.project(model, lines, inputs.prompt, attn=attn, dtype=staged.dtype)
        for line in projection.counts_lines(projected):
            if cost_key(line["pruner"], line["budget"]) not in there:
                ledgers.append(line)
    finally:
        ledgers.close()
