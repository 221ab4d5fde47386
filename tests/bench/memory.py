"""Does memory stay bounded? Peak of two runs in processes of their own, one over ten times as many images.

`python -m tests.bench.memory [--small 200] [--large 2000]`: RefShapes' val images under other names, one
expression each, the embedded backbone, one pruner.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import data
from harness.store import run_folder
from tests.refer_tree import ref, write_tree


def write(root: Path, count: int) -> None:
    """A REFER tree of `count` images: links to RefShapes' files, one expression and one polygon each."""
    source = [
        sample for split in ("val", "testA", "testB") for sample in data.load_samples("refshapes", split)
    ]
    refs = [ref(k, k, k, "val", source[k % len(source)].expressions[0].text) for k in range(count)]
    square = [[60.0, 60.0, 130.0, 60.0, 130.0, 130.0, 60.0, 130.0]]
    write_tree(root, refs, {k: square for k in range(count)}, images=())
    pictures = root / "Refer_Segm" / "coco_2014" / "train2014"
    instances = root / "Refer_Segm" / "refcoco" / "instances.json"
    content = json.loads(instances.read_text())
    for k in range(count):
        os.symlink(source[k % len(source)].path, pictures / f"{k}.png")
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": 192, "width": 192})
    instances.write_text(json.dumps(content))


def peak(count: int) -> tuple[int, float]:
    """Bytes of resident memory at most, as the run recorded it, and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "data", count)
        options = [
            "--pruners",
            "visionzip,litelvlm",
            "--budgets",
            "64",
            "--datasets",
            "refcoco:val",
            "--limit",
            "0",
        ]
        words = [
            sys.executable,
            "-m",
            "harness",
            *options,
            "--data",
            f"{place}/data",
            "--out",
            f"{place}/run",
            "--costs",
            "off",
        ]
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return run_folder.peak_memory(f"{place}/run"), time.perf_counter() - start


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--large", type=int, default=2000)
    given = parser.parse_args()
    (small, brief), (large, long) = peak(given.small), peak(given.large)
    for count, size, seconds in ((given.small, small, brief), (given.large, large, long)):
        print(f"{count:>6} images: peak {size / 2**20:.1f} MiB, {seconds:.0f} s")
    print(f"difference: {100 * (large / small - 1):+.1f} %")


if __name__ == "__main__":
    main()
