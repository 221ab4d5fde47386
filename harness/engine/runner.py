"""Runs a sweep: any number of processes claim parts of the data, fill all cells of each, and write what they
found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backbones.base import Backbone
from harness.engine.cells import impossible
from harness.engine.crew import Crew
from harness.engine.evaluate import conversations
from harness.engine.forks import forked
from harness.engine.ranks import Place
from harness.engine.served import served
from harness.engine.splits import IMAGES_AT_ONCE, Split, identity, parts, prepare
from harness.engine.way import Way
from harness.plan import Plan
from harness.progress import say
from harness.store.editions import Asked, open_run
from harness.store.records import CUT_OFF
from harness.store.run_folder import split_folder
from pruners.base import TEXT_EMBEDS, UserError

__all__ = ["IMAGES_AT_ONCE", "Plan", "Split", "Way", "identity", "prepare", "run"]


def run(
    plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path, way: Way | None = None
) -> bool:
    """Fill all cells of a plan into `folder`, together with whoever else works on it.

    What is there already stays and is not computed again: a run that was stopped goes on, and one that holds
    less (fewer pruners, budgets, splits or images) grows.

    Args:
        splits: as `prepare` gives them.

    Returns:
        Whether all that was asked for is there; a process that is not the launcher's first goes when nothing
        is left to claim.

    Raises:
        UserError: the folder holds another run or cannot be written, the data changed, memory does not
            suffice, or too many samples failed.
    """
    way, plan = way or Way(), plan.on(backbone)
    processes = _processes(way, backbone, splits)
    cut_off, (able, left_out) = _cut_off(plan, backbone, splits), served(plan.chosen(), backbone)
    refused = impossible(able, plan.budgets, backbone.grid, backbone.num_layers, backbone.stated)
    left_out |= {f"{name} at {budget}": str(why) for (name, budget), why in refused.items()}
    say(*(f"left out: {sentence}" for sentence in dict.fromkeys(left_out.values())))
    if count := cut_off.total():
        say(f"{count} {CUT_OFF}")
    asked = Asked(
        run=identity(splits),
        plan=replace(plan, datasets=",".join(":".join(split.name) for split in splits)).resolved().to_json(),
        jobs=[split.jobs for split in splits],
        samples={":".join(split.name): split.pairs for split in splits},
        cut_off=dict(cut_off),
        left_out=left_out,
    )
    try:
        opened = open_run(folder, asked, backbone, way.keep_code)
        say(*opened.said)
        if opened.finished:
            say(f"all of it is in {folder} already; nothing is evaluated again")
            return True
        if not all(
            split_folder(folder, *split.name).resolve().is_relative_to(folder.resolve()) for split in splits
        ):
            raise UserError(
                f"Records of {str(folder)!r} lie in a linked folder outside of it; give a new --out folder."
            )
        splits = [replace(split, jobs=jobs) for split, jobs in zip(splits, opened.jobs, strict=True)]
    except OSError as error:
        raise _unwritable(folder, error) from error

    def others(place: Place, way: Way = way) -> None:
        _work(Crew(backbone, splits, folder, replace(way, place=place), opened), closes=False)

    with forked(processes, others) as place:
        if processes > 1:
            way = replace(way, place=place)
        try:
            crew = Crew(backbone, splits, folder, way, opened)
        except OSError as error:
            raise _unwritable(folder, error) from error
        if done := crew.finished_results():
            say(f"goes on: {done:,} of {crew.results:,} images x cells are in {folder} already")
        return _work(crew)


def _processes(way: Way, backbone: Backbone, splits: Sequence[Split]) -> int:
    """How many processes evaluate here, this one included."""
    count = way.processes or (torch.get_num_threads() if backbone.forks else 1)
    count = min(count, len(parts(splits, backbone.medium))) if way.place.world == 1 else 1
    if count > 1 and backbone.device != "cpu":
        raise UserError(
            f"{count} processes cannot share a model on {backbone.device}; leave processes out, or start "
            f"them with torchrun."
        )
    return count


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write."
    )


def _work(crew: Crew, closes: bool = True) -> bool:
    folder, backbone = crew.folder, crew.backbone
    try:
        return crew.work(closes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{backbone.device} is out of memory even with the smallest batch; nothing recorded is lost, "
            f"give the same command with --out {folder} where there is more."
        ) from error
    except OSError as error:
        raise UserError(
            f"Writing to {str(folder)!r} failed ({error.strerror}); nothing recorded is lost, "
            "make room and give the same command with this --out again."
        ) from error
    finally:
        crew.close()


def _cut_off(plan: Plan, backbone: Backbone, splits: Sequence[Split]) -> Counter[str]:
    """How many questions of every split are longer than the text tower that a pruner of the plan reads."""
    found: Counter[str] = Counter()
    for split in splits:
        if not any(TEXT_EMBEDS in job.pruner.needs for job in split.jobs):
            continue
        for sample in split.samples:
            for talk in conversations(backbone, sample, plan.protocol or backbone.protocol, plan.seed):
                found[":".join(split.name)] += backbone.cut_off([turn.question for turn in talk.turns])
    return found
