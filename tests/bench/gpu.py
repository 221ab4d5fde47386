"""`python -m tests.bench.gpu`: GLaMM at full size on a GPU, random weights in bfloat16: what pruning really
buys there.

    python -m tests.bench.gpu --plan                           # what would run, and the roofline
    python -m tests.bench.gpu --minutes 8                      # again and again, until all rows are there
    python -m tests.bench.gpu --table                          # what --out holds, as markdown
    python -m tests.bench.gpu --device cpu --tiny --repeat 1   # the script itself, at the mini's size

Every row is an attention implementation, a batch, a pruner and a budget: prefill (CUDA events, median),
kernel time of one pass (torch profiler), peak memory above the weights, and how far prefill is from the
roofline. Batch 1 is the released pass of one image, masks included; larger batches are so many requests up to
the language model's last layer. The loop "compiled" is the language model alone, its layers compiled at a
fixed length.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from backbones.costs import Prompt, Shape
from backbones.glamm.model import GlammModel
from backbones.glamm.shapes import USUAL
from backbones.glamm.stages import GlammInputs, forward
from backbones.parts.faithful import Stage
from harness.cost import formulas, meters
from harness.cost.lines import lines_of
from harness.cost.roofline import GPUS, Gpu, gpu, prefill_seconds
from harness.cost.store import INSIDE
from harness.engine.cells import Line
from pruners import parse
from pruners.base import UserError
from reports.table_text import pipe_table
from tests.bench.drawn import Request, Rows, make_current, random_weights, read_rows, request, without_weights
from tests.bench.serving_loop import Served, prefilled
from tests.bench.static_loop import MULTIPLE, StaticLoop

BUDGETS = (576, 192, 128, 64)
ATTENTION = ("eager", "sdpa", "flash_attention_2")
BEFORE = "uniform"  # of the static loop: stands for all that choose before the language model
KEYS = ("attn", "loop", "batch", "pruner", "budget")
Run = Callable[[Stage], tuple[int, ...]]


@dataclass(frozen=True)
class Task:
    """One row to measure.

    Attributes:
        loop: "plain", or "compiled".
    """

    attn: str
    loop: str
    batch: int
    line: Line

    @property
    def key(self) -> tuple[Any, ...]:
        """As a row is named."""
        return self.attn, self.loop, self.batch, self.line.name, self.line.budget


def tasks(
    shapes: GlammModel, pruners: str, attention: Sequence[str], batches: Sequence[int], budgets: Sequence[int]
) -> Iterator[Task]:
    """All rows; those of one attention implementation together."""
    vision = shapes.clip.config.vision_config
    side, layers = vision.image_size // vision.patch_size, shapes.language_model.config.num_hidden_layers
    lines = lines_of(parse(pruners), budgets, 0, (side, side), layers)
    fewer = [budget for budget in budgets if budget < side * side]
    static = lines_of(parse(BEFORE), fewer, 0, (side, side), layers) if fewer else []
    for attn in attention:
        for batch in batches:
            yield from (Task(attn, "plain", batch, line) for line in lines)
            if attn == "sdpa":
                yield from (Task(attn, "compiled", batch, line) for line in static)


def lengths_of(task: Task, shapes: GlammModel, text: int) -> tuple[int, ...]:
    """Tokens of every layer, as the pruner states them."""
    vision = shapes.clip.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    layers = shapes.language_model.config.num_hidden_layers
    return tuple(n + text for n in task.line.pruner.schedule(task.line.budget, patches, layers))


def bound(lengths: Sequence[int], batch: int, shape: Shape, on: Gpu, element: int) -> tuple[float, str]:
    """The roofline of prefill in milliseconds, and what binds there."""
    macs = batch * formulas.language_model_macs(lengths, shape)
    seconds, streaming = prefill_seconds(macs, shape, on, element)
    return 1000 * seconds, "weights" if streaming else "arithmetic"


# -- what runs


def one_image(model: GlammModel, prompt: Prompt) -> GlammInputs:
    """One image and one conversation of that length, values drawn."""
    vision, sam = model.clip.config.vision_config, model.grounding_encoder.config.vision_config
    one, side = requests(model, prompt, 1)[0], vision.image_size // vision.patch_size
    vocabulary = model.clip.config.text_config.vocab_size
    words = torch.randint(0, vocabulary, (prompt.turns, prompt.words), device=one.pixels.device)
    large = torch.randn(1, 3, sam.image_size, sam.image_size, device=words.device, dtype=one.pixels.dtype)
    return GlammInputs(
        one.pixels[None],
        large,
        (sam.image_size, sam.image_size),
        (480, 640),
        one.before[None],
        one.after[None],
        tuple(-3 - 8 * turn for turn in range(prompt.turns)),
        {"input_ids": words, "attention_mask": torch.ones_like(words)},
        (side, side),
        sample="bench",
        asked=one.after,
    )


def requests(model: GlammModel, prompt: Prompt, count: int) -> list[Request]:
    """So many requests of that length."""
    found = []
    for number in range(count):
        one = request(model, 0, number)
        behind = one.after.repeat(prompt.text)[: prompt.text - len(one.before)]
        found.append(replace(one, after=behind))
    return found


def pass_of(model: GlammModel, task: Task, prompt: Prompt, mode: str) -> Run:
    """Runs one pass with a meter and returns the length that every layer saw."""
    line, config = task.line, model.language_model.config
    if task.loop == "compiled":
        torch.compiler.reset()  # shapes of other rows count against how many one function may have
        loop = StaticLoop(
            model.language_model, MULTIPLE, partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
        )
        lengths = lengths_of(task, model, prompt.text)
        weight = model.lm_head.weight
        hidden = torch.randn(
            task.batch, lengths[0], config.hidden_size, device=weight.device, dtype=weight.dtype
        )

        def run(stage: Stage) -> tuple[int, ...]:
            with stage("prefill"):
                loop(hidden)
            return lengths

        return run
    if task.batch == 1:
        inputs = one_image(model, prompt)
        return lambda stage: forward(model, inputs, line.pruner, line.budget, stage, False).lengths
    side = model.clip.config.vision_config.image_size // model.clip.config.vision_config.patch_size
    served, asked = Served(line.pruner, line.budget, side * side), requests(model, prompt, task.batch)
    return lambda stage: prefilled(model, asked, served, stage).run.lengths


def kernel_ms(run: Callable[[], object], device: str) -> float:
    """Time that kernels took in one pass, from torch's profiler; operators' own time without a GPU."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        run()
        if cuda:
            torch.cuda.synchronize(device)
    events = profiled.key_averages()
    if not cuda:
        return sum(event.self_cpu_time_total for event in events) / 1000
    # an operator on the CPU has the time of the kernels that it starts, which are events of their own
    kernels = (
        event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation
    )
    return sum(event.self_device_time_total for event in kernels) / 1000


def peaks_of(run: Run, device: str) -> meters.Peaks:
    """Memory of one pass."""
    if device.startswith("cuda"):
        peaks = meters.Peaks(meters.DeviceMemory(device))
        run(peaks)
        return peaks
    live = meters.LiveStorages()
    peaks = meters.Peaks(live)
    with live:
        run(peaks)
    return peaks


def measured(
    model: GlammModel, task: Task, prompt: Prompt, device: str, repeat: int, on: Gpu, mode: str = "default"
) -> dict[str, Any]:
    """One row: raw samples of every stage, the other meters once.

    Raises:
        UserError: the lengths that ran are not those that the pruner states.
    """
    run = pass_of(model, task, prompt, mode)
    for _ in range(2):
        lengths = run(meters.Clock(device))
    if lengths != lengths_of(task, model, prompt.text):
        raise UserError(f"{task.key} ran with lengths {lengths}, which its pruner does not state.")
    samples = []
    for _ in range(repeat):
        clock = meters.Clock(device)
        clock.finish()
        run(clock)
        clock.finish()
        spent = clock.spent()
        choice = sum(spent.get(name, 0.0) for name in ("text", "pruner", INSIDE))
        samples.append(
            {
                "prefill_ms": spent["prefill"] + spent.get(INSIDE, 0.0),
                "choice_ms": choice,
                "total_ms": clock.whole(),
            }
        )
    # under a mode that watches operators, a compiled function would be compiled again
    peaks = peaks_of(run, device) if task.loop == "plain" or device.startswith("cuda") else None
    shape = Shape.of(model.language_model.config)
    least, binds = bound(lengths, task.batch, shape, on, model.lm_head.weight.element_size())
    middle = {name: statistics.median(one[name] for one in samples) for name in samples[0]}
    return {
        **dict(zip(KEYS, task.key, strict=True)),
        **middle,
        "kernel_ms": kernel_ms(partial(run, meters.Clock(device)), device),
        "peak_prefill": peaks.rise["prefill"] if peaks else None,
        "peak_run": peaks.top if peaks else None,
        "roofline_ms": least,
        "bound": binds,
        "times_roofline": middle["prefill_ms"] / least,
        "samples": samples,
    }


# -- what is printed


def plan(
    todo: Sequence[Task], done: set[tuple[Any, ...]], shapes: GlammModel, text: int, on: Gpu, element: int
) -> str:
    """The rows with their rooflines, and how many are there."""
    shape = Shape.of(shapes.language_model.config)
    rows = []
    for task in todo:
        least, binds = bound(lengths_of(task, shapes, text), task.batch, shape, on, element)
        rows.append(
            dict(zip(KEYS, map(str, task.key), strict=True))
            | {"roofline ms": f"{least:.1f}", "bound by": binds}
            | {"": "there" if task.key in done else "to run"}
        )
    left = sum(task.key not in done for task in todo)
    return f"{pipe_table(rows)}\n\n{len(todo)} rows, {left} to run; roofline of {on.name}."


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured."""

    def mib(size: int | None) -> str:
        return "-" if size is None else f"{size / 2**20:.0f}"

    return pipe_table(
        [
            {name: str(row[name]) for name in KEYS}
            | {name.replace("_", " "): f"{row[name]:.2f}" for name in ("prefill_ms", "choice_ms", "total_ms")}
            | {"kernels ms": f"{row['kernel_ms']:.2f}", "peak prefill MiB": mib(row["peak_prefill"])}
            | {"peak MiB": mib(row["peak_run"]), "roofline ms": f"{row['roofline_ms']:.2f}"}
            | {"bound by": row["bound"], "x roofline": f"{row['times_roofline']:.2f}"}
            for row in rows
        ]
    )


# -- the command


def sheet_of(device_name: str) -> Gpu | None:
    """The data sheet of a GPU by its name."""
    return next((found for short, found in GPUS.items() if short in device_name.lower()), None)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    methods = ",".join(one.name for one in parse("all") if one.kind == "method")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, and the roofline")
    parser.add_argument("--table", action="store_true", help="print what --out holds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the embedded model's numbers, in float32")
    parser.add_argument("--minutes", type=float, help="stop before a row that would begin after so many")
    parser.add_argument("--repeat", type=int, default=10, help="timed passes of every row (%(default)s)")
    parser.add_argument("--pruners", default=methods, help="default: all methods; `none` always runs")
    parser.add_argument("--attn", nargs="+", choices=ATTENTION, default=ATTENTION)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--compile-mode", default="default", help="torch.compile's, of the static loop")
    parser.add_argument("--gpu", choices=list(GPUS), help="data sheet, if the GPU's name does not tell")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.jsonl"))
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure the rows that --out lacks, within the minutes."""
    asked = parsed(words)
    cuda = asked.device.startswith("cuda")
    if cuda and not (asked.plan or asked.table) and not torch.cuda.is_available():
        print(
            "This bench needs a CUDA GPU with 24 GB or more and a CUDA build of torch; without one: --plan, "
            "--device cpu --tiny, or python -m harness cost."
        )
        return 2
    name = torch.cuda.get_device_name(asked.device) if cuda and torch.cuda.is_available() else "h100"
    on = gpu(asked.gpu) if asked.gpu else sheet_of(name)
    if on is None:
        print(f"There is no data sheet for {name}; name the nearest with --gpu {', '.join(GPUS)}.")
        return 2
    try:
        return _go_on(asked, on)
    except UserError as error:
        print(error)
        return 2


def _go_on(asked: argparse.Namespace, on: Gpu) -> int:
    if asked.table:
        print(table(read_rows(asked.out)[1]))
        return 0
    backbone, dtype = ("glamm-mini", torch.float32) if asked.tiny else ("glamm-7b", torch.bfloat16)
    shapes = without_weights(backbone)
    there = [attn for attn in asked.attn if attn != "flash_attention_2" or find_spec("flash_attn")]
    if asked.plan:
        todo = list(tasks(shapes, asked.pruners, asked.attn, asked.batches, asked.budgets))
        done = {tuple(row[name] for name in KEYS) for row in _kept(asked.out)}
        print(plan(todo, done, shapes, USUAL.text, on, dtype.itemsize))
        return 0
    make_current(asked.device)
    settings = {"backbone": backbone, "device": asked.device, "dtype": str(dtype), "repeat": asked.repeat}
    settings |= {"data_sheet": asdict(on), "prompt": asdict(USUAL), "compile_mode": asked.compile_mode}
    kept = Rows(asked.out, settings, asked.device, KEYS)
    todo = [
        task
        for task in tasks(shapes, asked.pruners, there, asked.batches, asked.budgets)
        if task.key not in kept.rows
    ]
    begin, model, attn = time.monotonic(), shapes, ""
    for place, task in enumerate(todo):
        if asked.minutes is not None and time.monotonic() - begin > 60 * asked.minutes:
            print(f"{len(todo) - place} rows are left; the same command goes on.")
            return 0
        if task.attn != attn:
            attn = task.attn
            del model  # two at once would not fit
            model = random_weights(without_weights(backbone, attn), asked.device, dtype)
        row = measured(model, task, USUAL, asked.device, asked.repeat, on, asked.compile_mode)
        kept.add(row)
        print(
            *task.key,
            *(f"{one}={row[one]:.2f}" for one in ("prefill_ms", "total_ms", "times_roofline")),
            flush=True,
        )
    print(f"all {len(kept.rows)} rows are in {asked.out}; print them with --table.")
    return 0


def _kept(path: Path) -> list[dict[str, Any]]:
    return read_rows(path)[1] if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
