"""`python -m tests.bench.gpu`: GLaMM at full size on a GPU, random weights in bfloat16: what pruning really
buys there.

For every attention implementation, batch, pruner and budget: prefill (CUDA events, median), kernel time of
one pass (torch profiler), peak memory above the weights, and how far prefill is from the roofline. Batch 1 is
the whole pass of one image; larger batches are the language model over that many conversations at once.
Without a GPU it says what it needs and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from backbones.costs import Prompt
from backbones.glamm.checkpoint import materialise
from backbones.glamm.full_size import on_meta
from backbones.glamm.model import GlammModel
from backbones.glamm.shapes import USUAL
from backbones.glamm.stages import GlammInputs, forward
from backbones.parts.cuts import cutting
from backbones.parts.faithful import Stage
from backbones.parts.staged import prefill
from harness.cost import formulas, meters
from harness.cost.lines import lines_of
from harness.cost.roofline import GPUS, Gpu, gpu, prefill_seconds
from harness.cost.store import INSIDE
from harness.engine.cells import Line
from harness.store.provenance import collect
from pruners import parse

METHODS = "litelvlm,fastv,visionzip,prumerge,vispruner,trim"
BUDGETS = (576, 192, 128, 64)


def random_weights(model: GlammModel, device: str, dtype: torch.dtype) -> GlammModel:
    """The model of a meta build on a device, every value drawn."""
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
    materialise(model, device)
    return model.eval().requires_grad_(False)


def random_inputs(model: GlammModel, prompt: Prompt, device: str) -> GlammInputs:
    """One image and one conversation of that length, values drawn."""
    vision, sam = model.clip.config.vision_config, model.grounding_encoder.config.vision_config
    dtype, side = model.lm_head.weight.dtype, vision.image_size // vision.patch_size

    def pixels(size: int) -> torch.Tensor:
        return torch.randn(1, 3, size, size, dtype=dtype, device=device)

    def ids(rows: int, count: int, most: int) -> torch.Tensor:
        return torch.randint(0, most, (rows, count), device=device)

    words = ids(prompt.turns, prompt.words, model.clip.config.text_config.vocab_size)
    return GlammInputs(
        pixels(vision.image_size),
        pixels(sam.image_size),
        (sam.image_size, sam.image_size),
        (480, 640),
        ids(1, prompt.before, model.lm_head.out_features),
        ids(1, prompt.after, model.lm_head.out_features),
        tuple(-3 - 8 * turn for turn in range(prompt.turns)),
        {"input_ids": words, "attention_mask": torch.ones_like(words)},
        (side, side),
        None,
        "bench",
    )


def pass_of(
    model: GlammModel, inputs: GlammInputs, line: Line, batch: int
) -> Callable[[Stage], tuple[int, ...]]:
    """Runs one pass with a meter and returns the length that every layer saw."""
    if batch == 1:
        return lambda stage: forward(model, inputs, line.pruner, line.budget, stage).lengths
    llm, patches = model.language_model, inputs.grid[0] * inputs.grid[1]
    entering = line.pruner.entering(line.budget, patches, len(llm.layers))
    cut = cutting(line.pruner, line.budget, patches, len(llm.layers), "bench")
    visual = torch.randn(
        batch,
        entering,
        llm.config.hidden_size,
        device=inputs.small.device,
        dtype=inputs.small.dtype,
    )
    before, after = (ids.expand(batch, -1) for ids in (inputs.before, inputs.after))

    def run(stage: Stage) -> tuple[int, ...]:
        with torch.no_grad(), stage("prefill"):
            return prefill(llm, before, visual, after, cut, None, stage).lengths

    return run


def kernel_ms(run: Callable[[], object], device: str) -> float:
    """Time that kernels took in one pass, from torch's profiler; operators' own time without a GPU."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        run()
        if cuda:
            torch.cuda.synchronize()
    events = profiled.key_averages()
    return sum(event.self_device_time_total if cuda else event.self_cpu_time_total for event in events) / 1000


def measured(
    model: GlammModel, inputs: GlammInputs, line: Line, batch: int, device: str, repeat: int, on: Gpu
) -> dict[str, Any]:
    """One row: raw samples of prefill, the other meters once."""
    run = pass_of(model, inputs, line, batch)
    for _ in range(2):
        run(meters.Clock(device))
    samples = []
    for _ in range(repeat):
        clock = meters.Clock(device)
        clock.finish()
        lengths = run(clock)
        clock.finish()
        spent = clock.spent()
        samples.append({"prefill_ms": spent["prefill"] + spent.get(INSIDE, 0), "total_ms": clock.whole()})
    if device.startswith("cuda"):
        peaks = meters.Peaks(meters.DeviceMemory(device))
        run(peaks)
    else:
        live = meters.LiveStorages()
        peaks = meters.Peaks(live)
        with live:
            run(peaks)
    shape = formulas.Shape.of(model.language_model.config)
    bound, streaming = prefill_seconds(batch * formulas.language_model_macs(lengths, shape), shape, on)
    middle = statistics.median(sample["prefill_ms"] for sample in samples)
    return {
        "pruner": line.name,
        "budget": line.budget,
        "batch": batch,
        "prefill_ms": middle,
        "total_ms": statistics.median(sample["total_ms"] for sample in samples),
        "kernel_ms": kernel_ms(partial(run, meters.Clock(device)), device),
        "peak_prefill": peaks.rise["prefill"],
        "peak_run": peaks.top,
        "roofline_ms": 1000 * bound,
        "bound": "weights" if streaming else "arithmetic",
        "times_roofline": middle / (1000 * bound),
        "samples": samples,
    }


def bench(
    model: GlammModel,
    prompt: Prompt,
    device: str,
    batches: Sequence[int],
    budgets: Sequence[int],
    repeat: int,
    on: Gpu,
) -> Iterator[dict[str, Any]]:
    """All rows of one attention implementation."""
    inputs = random_inputs(model, prompt, device)
    lines = lines_of(parse(METHODS), budgets, 0, inputs.grid, len(model.language_model.layers))
    for batch in batches:
        for line in lines:
            yield measured(model, inputs, line, batch, device, repeat, on)


def sheet_of(device_name: str) -> Gpu | None:
    """The data sheet of a GPU by its name."""
    return next((found for short, found in GPUS.items() if short in device_name.lower()), None)


def main(words: Sequence[str] | None = None) -> int:
    """Run and write the results file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument(
        "--repeat", type=int, default=10, help="timed passes of every row (default %(default)s)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gpu", choices=list(GPUS), help="data sheet, if the GPU's name does not tell")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    asked = parser.parse_args(words)
    if not torch.cuda.is_available():
        print(
            "This bench needs a CUDA GPU with 24 GB or more and a CUDA build of torch; without one: python "
            "-m harness cost."
        )
        return 2
    name = torch.cuda.get_device_name()
    on = gpu(asked.gpu) if asked.gpu else sheet_of(name)
    if on is None:
        print(f"There is no data sheet for {name}; name the nearest with --gpu {', '.join(GPUS)}.")
        return 2
    prompt = USUAL
    found: dict[str, Any] = {
        "provenance": collect("cuda"),
        "data_sheet": asdict(on),
        "prompt": asdict(prompt),
        "rows": [],
    }
    kinds = ["eager", "sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]
    for attn in kinds:
        model = random_weights(on_meta("glamm-7b", attn), "cuda", torch.bfloat16)
        for row in bench(model, prompt, "cuda", asked.batches, BUDGETS, asked.repeat, on):
            found["rows"].append({"attn": attn, **row})
            told = {name: value for name, value in row.items() if name != "samples"}
            print(
                attn,
                *(
                    f"{name}={value:.2f}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in told.items()
                ),
            )
        del model
        torch.cuda.empty_cache()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found['rows'])} rows: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
