"""What would the full RefCOCO/+/g matrix take on 1, 8 and 64 GPUs? `python -m tests.bench.scale [--gpu h100]
[--images 64]`.

The GPU's part is a bound by arithmetic: the multiply-adds of the shared sweep at the data sheet's peak rate.
The processor's parts are measured here, on images of COCO's size with a model that does nothing: what every
process reads before it begins (annotations and fingerprints), what is read ahead per image, what is recorded
per row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from torch import Tensor

import backbones
from backbones.base import Backbone, Encoding, Grounded, Pixels, Row, Turn
from backbones.glamm.preprocess import clip_pixels, sam_pixels
from harness import data
from harness.cost import projection, sharing
from harness.cost.roofline import compute_seconds, gpu
from harness.data.sample import fingerprint
from harness.doctor import OFFICIAL
from harness.engine.cells import expand
from harness.engine.prefetch import Parts
from harness.engine.runner import IMAGES_AT_ONCE, Plan, Way, prepare, run
from harness.engine.splits import parts, samples_of
from harness.store import records
from pruners import parse
from pruners.base import View
from tests.refer_tree import ref, write_tree

HEIGHT, WIDTH = 480, 640  # the commonest size in COCO
EXPRESSIONS = 3  # per image of the measured data
REACHED = (1.0, 0.4)  # shares of the peak rate: the bound, and what large matrices commonly get
GPUS = (1, 8, 64)


class Nothing(Backbone):
    """Prepares images as GLaMM does and answers with masks that were drawn before."""

    name, grid, num_layers, fingerprint = "nothing", (24, 24), 32, "0" * 16
    device, dtype, attn, batch_size = "cpu", "float32", "sdpa", 16

    def __init__(self) -> None:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        draw = torch.Generator().manual_seed(0)
        far = [np.hypot(y - 200 - 20 * k, x - 300 - 30 * k) for k in range(8)]
        self.logits = [
            60 - torch.from_numpy(one).float() + 4 * torch.randn(HEIGHT, WIDTH, generator=draw) for one in far
        ]

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        grounding, resized = sam_pixels(image, 1024)
        return Pixels(clip_pixels(image, 336), grounding, resized, image.shape[:2])

    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        return [Encoding((torch.zeros(577, 1),), torch.zeros(1), one.resized, one.original) for one in pixels]

    def views(self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: Any = None) -> list[View]:
        def answer(need: object) -> Tensor:
            return torch.rand(576)

        states = encoding.hidden_states[0]
        return [View(states[1:], states[0], self.grid, 1, answer, sample)]

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> list[Grounded]:
        found = []
        for k, row in enumerate(rows):
            assert row.selection is not None
            count = row.selection.tokens
            found.append(
                Grounded(self.logits[k % 8][None], (count,) * self.num_layers, row.selection.indices)
            )
        return found


@dataclass(frozen=True)
class Measured:
    """Processor seconds."""

    before_image: float
    ahead_image: float
    row: float
    bytes_row: float


def write(root: Path, count: int) -> None:
    """A REFER tree of `count` JPEG images."""
    refs = [
        ref(k * EXPRESSIONS + j, k, k, "val", f"thing {k} {j}")
        for k in range(count)
        for j in range(EXPRESSIONS)
    ]
    outline = [[200.0, 150.0, 400.0, 140.0, 420.0, 300.0, 210.0, 320.0, 190.0, 200.0]]
    write_tree(root, refs, {k: outline for k in range(count)}, images=())
    noise = np.random.default_rng(0)
    annotations = root / "Refer_Segm" / "refcoco" / "instances.json"
    content = json.loads(annotations.read_text())
    for k in range(count):
        coarse = Image.fromarray(noise.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
            root / "Refer_Segm" / "coco_2014" / "train2014" / f"{k}.jpg", quality=90
        )
        content["images"].append({"id": k, "file_name": f"{k}.jpg", "height": HEIGHT, "width": WIDTH})
    annotations.write_text(json.dumps(content))


def measure(count: int) -> Measured:
    """What surrounds the model, on one core."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write(root, count)
        backbone = Nothing()
        plan = Plan(tuple(parse("none,random,uniform")), (64, 128, 192), (("refcoco", "val"),), data=place)
        clock = time.process_time()
        fingerprint(data.load_samples("refcoco", "val", place))
        before = time.process_time() - clock
        splits = prepare(plan, backbone)
        ready = Parts(samples_of(splits, parts(splits)), backbone.preprocess)
        clock = time.process_time()
        for number in range(len(ready.parts)):
            ready[number]
        ahead = time.process_time() - clock
        clock = time.process_time()
        run(plan, backbone, splits, root / "run", Way())
        rows = len(records.load_records(root / "run"))
        taken = time.process_time() - clock - ahead
        size = sum(file.stat().st_size for file in (root / "run" / records.FOLDER).rglob("*.parquet"))
        return Measured(before / count, ahead / count, taken / rows, size / rows)


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def main() -> None:
    """Measure, project, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = [split for splits in OFFICIAL.values() for split in splits.values()]
    images, expressions = sum(split[0] for split in numbers), sum(split[2] for split in numbers)
    model, on = backbones.one("glamm-7b").shapes(), gpu(given.gpu)
    lines = expand(parse("all"), (64, 128, 192), 0, (24, 24), 32)
    prompt = model.prompt().alone()
    talks = round(expressions / images)
    account = sharing.account(projection.project(model, lines, prompt), lines, prompt, talks)
    cells = len(lines)
    seen = measure(given.images)
    rows = cells * expressions
    print(
        f"{images} images, {expressions} expressions, {cells} cells, {rows} rows of {seen.bytes_row:.0f} "
        f"bytes"
    )
    print(
        f"before a run begins, by one process: {1e3 * seen.before_image:.2f} ms per image, "
        f"{images * seen.before_image:.0f} s in all"
    )
    print(
        f"read ahead: {1e3 * seen.ahead_image:.1f} ms per image; recorded: {1e3 * seen.row:.2f} ms per "
        f"row; one core each"
    )
    print(
        f"{on.name}: {account.naive / 1e12:.1f} TMAC per image cell by cell, {account.shared / 1e12:.1f} "
        f"shared\n"
    )
    table = []
    for count in GPUS:
        line = {"GPUs": str(count), "parts per GPU": f"{images / IMAGES_AT_ONCE / count:.0f}"}
        for reached in REACHED:
            for name, macs in (("cell by cell", account.naive), ("shared", account.shared)):
                hours = images * compute_seconds(macs, on) / reached / count / 3600
                line[f"{name}, {100 * reached:.0f} % of peak"] = _time(hours)
        line["read ahead, one core per GPU"] = _time(images * seen.ahead_image / count / 3600)
        line["recording, one core per GPU"] = _time(rows * seen.row / count / 3600)
        table.append(line)
    print(tabulate(table, headers="keys", tablefmt="pipe"))


if __name__ == "__main__":
    main()
