"""`--costs measured`: every cell's faithful forward pass, counted once and timed in rounds that hold all
cells."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from harness.progress import Stage, stage
from harness.store import code, provenance
from harness.store.journal import alone
from pruners.base import UserError

ROUNDS = 8
BASELINE_RUNS = 3  # of `none` in a round, so that one lucky pass of it does not decide every row's comparison
WHOLE_RUNS = 2  # whole passes in a round where rows run without the stages that are the same for all of them
# of timed passes on a CPU: of more the processor time holds how they wait for each other, too
THREADS = 1
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


@dataclass
class Common:
    """What rows have in common, so that it is made once for all of them.

    Attributes:
        seen: what the fixed stages in front of the pruner made; None of a model that names no fixed ones.
        macs: multiply-adds of the fixed stages, once a whole pass was counted.
        opinions: second counts of layers in which nothing is cut, by the tokens that enter them: the same
            function of as many zeros.
    """

    seen: Any = None
    macs: dict[str, int] = field(default_factory=dict)
    opinions: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, staged: Staged, inputs: Inputs) -> Common:
        """Of these inputs, nothing counted yet."""
        return cls(staged.see(inputs) if staged.fixed else None)

    def without(self) -> dict[str, Any]:
        """What keeps a pass from running the fixed stages, as an argument of `Staged.forward`."""
        return {} if self.seen is None else {"seen": self.seen}


def count(staged: Staged, inputs: Inputs, line: Line, common: Common | None = None) -> dict[str, Any]:
    """What one cell executes: multiply-adds by stage, the second count of the language model, and live
    bytes. What its pruner chooses is checked.

    Args:
        common: of the rows of before; what is counted for all joins it.

    Raises:
        UserError: the counts differ from what the lengths give, or a stage ran that the model does not name.
    """
    common = Common() if common is None else common
    counting = meters.counter()
    ledger = meters.mac_ledger(counting)
    with counting:
        without = common.without() if common.macs else {}
        passed = staged.forward(inputs, line.pruner, line.budget, ledger, **without)
    macs = common.macs | {stage: int(spent) for stage, spent in ledger.spent().items()}
    common.macs = {stage: macs[stage] for stage in staged.fixed if stage in macs}
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
        "fvcore": second(staged, inputs, line, passed.lengths[0] - inputs.prompt.text, common),
        "peak": peaks(staged, inputs, line),
    }


def second(staged: Staged, inputs: Inputs, line: Line, entering: int, common: Common) -> int:
    """fvcore's count of the language model's layers.

    Args:
        entering: visual tokens in the first one.
    """
    if line.pruner.cuts(line.budget, staged.patches, staged.shape.layers):
        return _traced(staged, inputs, line, entering)
    if entering not in common.opinions:
        common.opinions[entering] = _traced(staged, inputs, line, entering)
    return common.opinions[entering]


def _traced(staged: Staged, inputs: Inputs, line: Line, entering: int) -> int:
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
    """Highest rise of live bytes in every stage, and of the whole run. The pass is whole: how high its last
    stages rise depends on what the first ones left."""
    if staged.device.startswith("cuda"):
        watch = meters.Peaks(meters.DeviceMemory(staged.device))
        staged.forward(inputs, line.pruner, line.budget, watch, checked=False)
    else:
        live = meters.LiveStorages()
        watch = meters.Peaks(live)
        with live:
            staged.forward(inputs, line.pruner, line.budget, watch, checked=False)
    return watch.rise | {"run": watch.top}


def clock(staged: Staged, inputs: Inputs, line: Line, common: Common | None = None) -> dict[str, float]:
    """Milliseconds of every stage of one pass and of the whole: processor time, or time on the GPU.

    Args:
        common: leaves the fixed stages out.
    """
    watch = meters.Clock(staged.device)
    watch.finish()
    without = {} if common is None else common.without()
    staged.forward(inputs, line.pruner, line.budget, watch, checked=False, **without)
    watch.finish()
    found = watch.spent() | {"total": watch.whole()}
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
        "threads": THREADS if backbone.device == "cpu" else torch.get_num_threads(),
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
    comparisons are made within a round. On a CPU the stages that no pruner changes are timed apart, a few
    times in every round, and belong to all of its rows. A round that was interrupted is measured again as a
    whole.
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
        # on a GPU a stage's kernels are launched while those of the one before run: there a pass stays whole
        apart = bool(staged.fixed) and not staged.device.startswith("cuda")
        passes = len(lines) + BASELINE_RUNS - 1 + WHOLE_RUNS * apart
        already = sum(cost_key(line.name, line.budget) in there for line in lines) + passes * len(done)
        with stage("measuring costs", len(lines) + passes * rounds, "passes", already) as progress:
            common = Common.of(staged, inputs)
            for line in lines:
                if cost_key(line.name, line.budget) not in there:
                    progress.at(progress.done, f"counting {line.name} at {line.budget}")
                    ledgers.append(count(staged, inputs, line, common))
                    progress.advance()
                elif left:  # counting warms up
                    progress.at(progress.done, "warming up")
                    staged.forward(inputs, line.pruner, line.budget)
            with _steady(staged.device):
                for number in left:
                    progress.at(progress.done, f"round {number + 1} of {rounds}")
                    ledgers.append(_round(staged, inputs, lines, common if apart else None, number, progress))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{staged.device} is out of memory while measuring costs; give --costs off or projected."
        ) from error
    finally:
        ledgers.close()


@contextmanager
def _steady(device: str) -> Iterator[None]:
    """On a CPU as many threads as are timed; and no search for garbage among all that was there before."""
    threads = torch.get_num_threads()
    gc.collect()
    gc.freeze()
    if device == "cpu":
        torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        gc.unfreeze()


def _round(
    staged: Staged,
    inputs: Inputs,
    lines: Sequence[Line],
    common: Common | None,
    number: int,
    progress: Stage,
) -> dict[str, Any]:
    """One pass of every row and some more of `none`, in an order of the round's own.

    Args:
        common: leaves the fixed stages out of these; they are timed in some whole passes among them.
    """
    unpruned = [line for line in lines if line.name == BASELINE]
    turns = [(line, common) for line in (*lines, *unpruned * (BASELINE_RUNS - 1))]
    if common is not None:  # of a row that is short: of its own stages nothing is taken from there
        turns += [(min(lines, key=lambda line: line.budget), None)] * WHOLE_RUNS
    own: list[list[Any]] = []
    fixed: list[dict[str, float]] = []
    for line, left_out in random.Random(number).sample(turns, len(turns)):
        spent = clock(staged, inputs, line, left_out)
        if left_out is common:
            own.append([cost_key(line.name, line.budget), spent])
        else:
            fixed.append({stage: spent[stage] for stage in staged.fixed})
        progress.advance()
    return {"kind": "round", "number": number, "ms": own} | ({"fixed": fixed} if fixed else {})


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
