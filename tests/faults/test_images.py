"""Images that a data set should not have: each is read rightly or recorded as failed with its reason, and
costs only itself."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.engine.ranks import Place
from harness.engine.runner import Plan, Way, prepare, run
from harness.store import records
from pruners import UserError, parse
from reports import render
from tests.fake_backbone import FakeBackbone, write_data
from tests.faults.crew import Record, SlowBackbone, plan_of
from tests.refer_tree import HEIGHT, WIDTH

pytestmark = pytest.mark.usefixtures("no_figures")

NOISE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def picture(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def stored(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def huge() -> bytes:
    """The head of a PNG of 20,000 x 20,000 pixels: a few bytes that would unpack to gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    head = (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    """Stored as annotated, with a note that viewers should turn it: annotations are in stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(exif=exif)


FAIL: dict[str, Callable[[], bytes]] = {
    "truncated JPEG": lambda: picture()[:700],
    "zero bytes": lambda: b"",
    "not an image": lambda: b"<html>404</html>",
    "1 x 1": lambda: stored(Image.new("RGB", (1, 1))),
    "huge": huge,
    "turned by hand": lambda: stored(Image.fromarray(NOISE).transpose(Image.Transpose.ROTATE_90)),
}
READ: dict[str, Callable[[], bytes]] = {
    "16 bits": lambda: stored(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)),
    "CMYK": lambda: stored(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "grayscale": lambda: stored(Image.fromarray(NOISE).convert("L")),
    "palette with transparency": lambda: stored(Image.fromarray(NOISE).convert("RGBA").quantize()),
    "EXIF says turned": turned,
}


def start(root: Path, folder: Path, way: Way, pruners: str = "none,random") -> None:
    plan = Plan(tuple(parse(pruners)), (8,), (("refcoco", "val"),), data=str(root))
    backbone = FakeBackbone()
    run(plan, backbone, prepare(plan, backbone), folder, way)


def place_of(root: Path, number: int) -> Path:
    return root / "Refer_Segm" / "coco_2014" / "train2014" / f"{number}.png"


@pytest.mark.parametrize("kind", FAIL)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_costs_only_itself(
    tmp_path: Path, kind: str, workers: int, record_property: Record
) -> None:
    root = write_data(tmp_path / "data")
    place_of(root, 2).write_bytes(FAIL[kind]())
    start(root, tmp_path / "run", Way(workers=workers))
    record_property("faults", Counter({"images broken": 1}))
    ((sample, reason),) = records.failures(tmp_path / "run").items()
    assert sample == "refcoco:val:2"
    assert str(place_of(root, 2)) in reason
    assert set(records.load_records(tmp_path / "run")["sample"]) == {"refcoco:val:1", "refcoco:val:3"}
    assert "Failed samples: 1; refcoco:val:2" in render(tmp_path / "run")[0].read_text()


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("kind", READ)
def test_an_unusual_image_is_read(tmp_path: Path, kind: str) -> None:
    root = write_data(tmp_path / "data")
    place_of(root, 2).write_bytes(READ[kind]())
    start(root, tmp_path / "run", Way())
    assert records.failures(tmp_path / "run") == {}
    assert records.load_records(tmp_path / "run")["sample"].nunique() == 3


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    from harness.data import load_samples

    root = write_data(tmp_path / "data")
    place_of(root, 2).write_bytes(READ["16 bits"]())
    assert np.array_equal(load_samples("refcoco", "val", root)[1].image()[..., 0], NOISE[..., 0])


def test_an_image_that_is_gone_is_a_failed_sample(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    plan = Plan(tuple(parse("none")), (8,), (("refcoco", "val"),), data=str(root))
    backbone = FakeBackbone()
    splits = prepare(plan, backbone)  # refuses data that are incomplete from the start
    place_of(root, 2).unlink()
    run(plan, backbone, splits, tmp_path / "run")
    assert "is gone" in records.failures(tmp_path / "run")["refcoco:val:2"]


def test_more_failures_than_allowed_stop_the_run(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", images=64)
    for number in (2, 3, 12):  # not the same bytes: that would be one medium
        place_of(root, number).write_bytes(bytes([number]))
    with pytest.raises(
        UserError, match=r"2 of 32 samples failed, more than --max-failures 0.01 \(refcoco:val:2"
    ):
        start(root, tmp_path / "run", Way())
    with pytest.raises(UserError, match="2 of 32 samples failed"):  # the same command does not get past it
        start(root, tmp_path / "run", Way())
    start(root, tmp_path / "run", Way(max_failures=0.1))
    assert len(records.failures(tmp_path / "run")) == 3
    assert records.load_records(tmp_path / "run")["sample"].nunique() == 29


def test_failures_of_all_workers_count(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", images=64)
    for number in (2, 12):  # one in each worker's first part
        place_of(root, number).write_bytes(b"")
    with pytest.raises(UserError, match="2 of 32 samples failed"):
        start(root, tmp_path / "run", Way(place=Place(1, 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_ahead_changes_nothing(tmp_path: Path, workers: int) -> None:
    root = write_data(tmp_path / "data", images=64)
    start(root, tmp_path / "a", Way())
    start(root, tmp_path / "b", Way(workers=workers))
    pd.testing.assert_frame_equal(records.load_records(tmp_path / "a"), records.load_records(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "said"), [({"max_failures": 2.0}, "no share"), ({"workers": -1}, "negative")]
)
def test_ways_that_make_no_sense(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Way(**options)  # type: ignore[arg-type]


def test_a_killed_reader_is_one_sentence_and_the_run_goes_on(tmp_path: Path, record_property: Record) -> None:
    """As the kernel does when memory ends: no image is blamed, and the same command ends the run."""
    root = write_data(tmp_path / "data", images=200)
    place = tmp_path / "run" / "records"

    def kill() -> None:
        while not list(place.glob("*/*.jsonl")):
            time.sleep(0.01)
        os.kill(min(child.pid or 0 for child in multiprocessing.active_children()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    plan, backbone = plan_of(root), SlowBackbone(0.1)
    with pytest.raises(UserError, match=r"was killed .* same command again, with fewer than --workers 2"):
        run(plan, backbone, prepare(plan, backbone), tmp_path / "run", Way(workers=2))
    killer.join()
    record_property("faults", Counter({"readers killed": 1}))
    backbone = SlowBackbone(0)
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run", Way())
    assert records.failures(tmp_path / "run") == {}
