"""Parts of a run are media: one that several data sets ask about is read and encoded once; digests of files
are kept; a small model is evaluated by several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from backbones.base import Backbone
from harness.data import Sample, identify, load_samples
from harness.data import digests as digests_file
from harness.data.digests import FileDigests, digests_of
from harness.data.sample import MISSING, file_digest
from harness.engine import forks
from harness.engine.ranks import Place
from harness.engine.runner import Plan, Way, prepare, run
from harness.engine.splits import IMAGES_AT_ONCE, parts, samples_of
from harness.store import journal, records
from harness.store.named import encoded, named_rows
from pruners import UserError
from tests.fake_backbone import FakeBackbone
from tests.refer_tree import SHIFTED, SQUARE, ref, write_tree

pytestmark = pytest.mark.usefixtures("no_figures")

IMAGES = 11
SETS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
ALL = "refcoco:val,refcoco+:val,refcocog:val"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets that ask about the same images; the third of two images less."""
    place = tmp_path_factory.mktemp("data")
    for k, (name, author) in enumerate(SETS.items()):
        images = range(1, IMAGES + 1 - 2 * (k == 2))
        refs = [ref(10 * i + k, i, i, "val", f"thing {i} of {name}", f"that {i}") for i in images]
        outlines: dict[int, Any] = {i: [[SQUARE, SHIFTED][(i + k) % 2]] for i in images}
        write_tree(place, refs, outlines, name, author, images=())
        instances = place / "Refer_Segm" / name / "instances.json"
        known = json.loads(instances.read_text())
        known["images"] = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 64} for i in images]
        instances.write_text(json.dumps(known))
    pixels = place / "Refer_Segm" / "coco_2014" / "train2014"
    for i in range(1, IMAGES + 1):
        Image.effect_noise((64, 40), 20.0 + 9 * i).convert("RGB").save(pixels / f"{i}.png")
    return place


def plan(root: Path, datasets: str = ALL, **more: Any) -> Plan:
    return replace(Plan("none,random,cdpruner,fastv(layer=1)", (8,), datasets, data=str(root)), **more)


def go(asked: Plan, folder: Path, **way: Any) -> FakeBackbone:
    backbone = FakeBackbone()
    assert run(asked, backbone, prepare(asked, backbone), folder, Way(**way))
    return backbone


def shown(folder: Path) -> pd.DataFrame:
    """All that was recorded, without what names the run."""
    frame = records.load_records(folder)
    return frame.drop(columns=["data"]).reset_index(drop=True)


# -- media


def test_an_image_of_three_data_sets_is_read_and_encoded_once_and_gives_the_same_rows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    image = Sample.image

    def counted(self: Sample, frame: int = 0) -> Any:
        read[self.frames[frame].name] += 1
        return image(self, frame)

    monkeypatch.setattr(Sample, "image", counted)
    together = go(plan(root), tmp_path / "all")
    assert sum(together.encoded) == IMAGES
    assert set(read.values()) == {1} and len(read) == IMAGES
    alone = []
    for name in ALL.split(","):
        go(plan(root, name), tmp_path / name)
        alone.append(shown(tmp_path / name))
    wanted = pd.concat(alone).sort_values(records.ORDER, ignore_index=True)
    pd.testing.assert_frame_equal(shown(tmp_path / "all"), wanted)
    naive = go(plan(root), tmp_path / "naive", share=False)
    assert sum(naive.encoded) > 3 * IMAGES
    exact = ["cell", "sample", "expression", "kept", "intersection", "union"]
    assert shown(tmp_path / "naive")[exact].equals(wanted[exact])


def test_what_depends_on_pixels_alone_is_chosen_once_for_all_who_ask(root: Path, tmp_path: Path) -> None:
    asked = Plan("cdpruner,hiprune,random", (8,), ALL, data=str(root))
    backbone = go(asked, tmp_path / "run")
    reads = Counter(kind for _, kind in backbone.asked)
    assert reads["text_embeds"] >= IMAGES * 3 - 2, "text is of a sample"
    # of two layers; besides for the first and the ninth sample of a split, and once more to see it repeated
    assert 0 < reads["received_attention"] <= 2 * (IMAGES + 6) + 2
    drawn = records.load_records(tmp_path / "run").query("pruner == 'random'")
    kept = drawn.groupby(["sample", "seed"])["kept"].first()
    assert kept.nunique() > IMAGES * 3, "draws hang on the sample"


def test_parts_hold_whole_media_and_are_bounded(root: Path) -> None:
    asked = plan(root)
    splits = prepare(asked, FakeBackbone())
    found = parts(splits)
    names = [
        [[sample.image_id for sample in medium] for medium in part] for part in samples_of(splits, found)
    ]
    assert all(len({*medium}) == 1 for part in names for medium in part)
    assert [medium[0] for part in names for medium in part] == sorted(range(1, IMAGES + 1))
    assert max(sum(map(len, part)) for part in names) <= IMAGES_AT_ONCE
    (whole,) = parts([replace(splits[0], samples=splits[0].samples[:3], contents=splits[0].contents[:3])])
    assert len(whole) == 3
    assert [len(part) for part in parts(splits, "video")] == [1] * IMAGES


def test_two_files_of_one_content_are_one_medium_and_two_sizes_are_two(root: Path, tmp_path: Path) -> None:
    (first, second, *_) = load_samples("refcoco", "val", root)
    copy = tmp_path / "copy.png"
    shutil.copy(first.frames[0], copy)
    assert identify(replace(second, frames=(copy,))).medium == identify(first).medium
    assert identify(replace(second, frames=(copy,), height=41)).medium != identify(first).medium
    gone = replace(first, frames=(tmp_path / "gone.png",))
    assert identify(gone).medium != identify(replace(gone, id="refcoco:val:x")).medium


def test_a_file_that_is_broken_costs_its_samples_each_in_its_own_words(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root, data)
    (data / "Refer_Segm" / "coco_2014" / "train2014" / "3.png").write_bytes(b"no image")
    go(plan(data), tmp_path / "run", max_failures=0.2)
    failed = records.failures(tmp_path / "run")
    assert sorted(failed) == ["refcoco+:val:3", "refcoco:val:3", "refcocog:val:3"]
    assert all(f"of {name} cannot be read" in why for name, why in failed.items())
    assert records.load_records(tmp_path / "run")["sample"].nunique() == 3 * IMAGES - 2 - 3


def test_a_segmentation_that_is_broken_costs_its_sample_alone(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root, data)
    instances = data / "Refer_Segm" / "refcoco+" / "instances.json"
    text = instances.read_text()
    outline = f'{{"id": 3, "segmentation": [{[SQUARE, SHIFTED][(3 + 1) % 2]}]}}'
    assert outline in text
    instances.write_text(text.replace(outline, '{"id": 3, "segmentation": [[1.0, 2.0, 3.0]]}'))
    go(plan(data), tmp_path / "run", max_failures=0.2)
    assert list(records.failures(tmp_path / "run")) == ["refcoco+:val:3"]
    go(plan(root), tmp_path / "sound")
    left = shown(tmp_path / "sound").query("sample != 'refcoco+:val:3'")
    exact = ["sample", "expression", "pruner", "seed", "kept", "intersection"]
    assert shown(tmp_path / "run")[exact].equals(left[exact].reset_index(drop=True))


# -- digests of files


def test_files_are_hashed_once_for_all_commands(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(digests_file, "SETTLED", -1.0)
    hashed: list[Path] = []

    def counted(path: Path) -> bytes:
        hashed.append(path)
        return file_digest(path)

    monkeypatch.setattr(digests_file, "file_digest", counted)
    before = [split.contents for split in prepare(plan(root), FakeBackbone())]
    assert len(hashed) == IMAGES
    assert [split.contents for split in prepare(plan(root), FakeBackbone())] == before
    assert len(hashed) == IMAGES, "the second command reads none"
    assert before == [
        [identify(sample) for sample in split.samples] for split in prepare(plan(root), FakeBackbone())
    ]


def test_a_file_that_was_changed_is_hashed_again_whatever_its_date_says(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    place = tmp_path / "digests.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests_file, "SETTLED", -1.0)
        FileDigests(place).learn([file, file])
    assert len(place.read_text().splitlines()) == 2
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    again = FileDigests(place)
    again.learn([file])
    assert again(file) == file_digest(file)


def test_a_file_of_this_moment_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    kept = FileDigests(tmp_path / "digests.jsonl")
    kept.learn([file, tmp_path / "gone.png"])
    assert not (tmp_path / "digests.jsonl").exists()
    assert (kept(file), kept(tmp_path / "gone.png")) == (file_digest(file), MISSING)


@pytest.mark.parametrize("hurt", ["torn", "flipped", "no journal", "a folder", "nowhere"])
def test_digests_that_cannot_be_read_are_made_anew(tmp_path: Path, hurt: str) -> None:
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * 9)
        os.utime(file, (1, 1))
    place = tmp_path / "digests.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests_file, "SETTLED", -1.0)
        if hurt == "nowhere":
            (tmp_path / "file").touch()
            place = tmp_path / "file" / "digests.jsonl"
        elif hurt == "a folder":
            place.mkdir()
        else:
            FileDigests(place).learn(files[:2])
            raw = place.read_bytes()
            place.write_bytes(
                {
                    "torn": raw[:-7],
                    "flipped": raw.replace(b"sha256", b"sha257", 1),
                    "no journal": b"\x00" * 50,
                }[hurt]
            )
        again = FileDigests(place)
        again.learn(files)
        assert [again(file) for file in files] == [file_digest(file) for file in files]
        if hurt not in ("nowhere", "a folder"):
            third = FileDigests(place)
            third.learn(files)
            rows = {row["file"] for _, row in journal.Reader(place, (1,), "")}
            assert rows == set(map(str, files))


def test_a_data_folder_has_its_digests_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = (digests_of(root, tmp_path / "cache")._place for root in (tmp_path, tmp_path / "link"))
    assert one == other != digests_of(None, tmp_path / "cache")._place


# -- rows of some samples


def test_rows_of_some_samples_are_found_without_reading_others(root: Path, tmp_path: Path) -> None:
    go(plan(root, "refcoco:val"), tmp_path / "run")
    cells = records.run_info(tmp_path / "run")["cells"]
    (path,) = (tmp_path / "run" / records.FOLDER).glob("*/*.jsonl")
    raw = path.read_bytes()
    every = [row for _, row in journal.Reader(path, records.SCHEMAS, "")]
    wanted = [row for row in every if row["sample"] == "refcoco:val:2"]
    # a line of another sample may be anything
    lines = raw.splitlines(keepends=True)
    other = next(k for k, line in enumerate(lines) if b'"refcoco:val:1"' in line)
    mine = next(k for k, line in enumerate(lines) if b'"refcoco:val:2"' in line)
    path.write_bytes(
        b"".join([*lines[:other], lines[other][:-9] + b"xxxxxxxx\n", *lines[other + 1 :]]) + b"torn"
    )
    two = {encoded("refcoco:val:2")}
    rows, end = named_rows(path, two, cells)
    assert [row["cell"] for row in rows] == [row["cell"] for row in wanted] and end == len(raw)
    half = len(b"".join(lines[: mine + 1]))
    assert len(named_rows(path, two, cells, stop=half)[0]) == 1
    assert len(named_rows(path, two, cells, start=half)[0]) == len(wanted) - 1
    assert named_rows(path, {b"refcoco:val:22"}, cells)[0] == []
    path.write_bytes(
        b"".join([*lines[:mine], lines[mine].replace(b"val:2", b"val:2", 1)[:-9] + b"0000000}\n"])
    )
    with pytest.raises(UserError, match=rf"jsonl:{mine + 1} is damaged"):
        named_rows(path, two, cells)
    path.write_bytes(raw.replace(b'"schema": 6', b'"schema": 7', 1))
    with pytest.raises(UserError, match=r"jsonl:1 is damaged \(its checksum is wrong\)"):
        named_rows(path, two, cells)


def test_an_id_may_have_quotes_and_letters_of_any_kind(root: Path, tmp_path: Path) -> None:
    go(plan(root, "refcoco:val"), tmp_path / "run")
    cells = records.run_info(tmp_path / "run")["cells"]
    (path,) = (tmp_path / "run" / records.FOLDER).glob("*/*.jsonl")
    name = 'refcoco:val:a "b"\\ü'
    rows = [row for _, row in journal.Reader(path, records.SCHEMAS, "") if row["sample"] == "refcoco:val:2"]
    path.write_bytes(b"".join(map(journal.line, [{"schema": 6}, *(row | {"sample": name} for row in rows)])))
    assert len(named_rows(path, {encoded(name)}, cells)[0]) == len(rows) > 0


# -- processes


class Forking(FakeBackbone):
    """Notes on the disk which process encodes."""

    forks = True  # type: ignore[assignment]

    def __init__(self, place: Path, dies: bool = False) -> None:
        super().__init__()
        self.place, self.dies, self.first = place, dies, os.getpid()

    def encode_pixels(self, pixels: Any) -> Any:
        with (self.place / str(os.getpid())).open("a") as file:
            file.write(f"{len(pixels)} {torch.get_num_threads()}\n")
        if self.dies and os.getpid() != self.first:
            os._exit(9)
        return super().encode_pixels(pixels)


@pytest.mark.parametrize("dies", [False, True])
def test_processes_share_a_run_and_record_what_one_does(root: Path, tmp_path: Path, dies: bool) -> None:
    asked, notes = plan(root), tmp_path / "notes"
    notes.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        backbone: Backbone = Forking(notes, dies)
        assert run(asked, backbone, prepare(asked, backbone), tmp_path / "run", Way(processes=None))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    said = {path.name: path.read_text().split("\n")[:-1] for path in notes.glob("*")}
    assert len(said) == 2 and str(os.getpid()) in said
    assert {line.split()[1] for lines in said.values() for line in lines} == {"1"}
    go(asked, tmp_path / "one")
    own = ["cell", "evaluation"]  # of this test's class
    found, wanted = (shown(tmp_path / name).drop(columns=own) for name in ("run", "one"))
    pd.testing.assert_frame_equal(found, wanted)
    assert not any(Path(f"/proc/{name}").exists() for name in said if name != str(os.getpid()))


def test_failures_in_another_process_count(root: Path, tmp_path: Path) -> None:
    data, notes = tmp_path / "data", tmp_path / "notes"
    shutil.copytree(root, data)
    notes.mkdir()
    for number in range(1, 12):  # whoever gets them
        place = data / "Refer_Segm" / "coco_2014" / "train2014" / f"{number}.png"
        place.write_bytes(bytes([number]) if number % 2 else place.read_bytes())
    asked = plan(data)
    with pytest.raises(UserError, match=r"samples failed, more than --max-failures 0.4"):
        run(
            asked,
            (one := Forking(notes)),
            prepare(asked, one),
            tmp_path / "run",
            Way(max_failures=0.4, processes=2),
        )
    assert not (tmp_path / "run" / records.DONE).exists()


def test_processes_do_not_share_a_gpu(root: Path, tmp_path: Path) -> None:
    backbone = FakeBackbone()
    splits = prepare(plan(root), backbone)
    backbone.device = "cuda"
    with pytest.raises(UserError, match="2 processes cannot share a model on cuda"):
        run(plan(root), backbone, splits, tmp_path / "run", Way(processes=2))


def test_other_processes_go_where_this_one_fails(tmp_path: Path) -> None:
    def wait(place: Place) -> None:
        (tmp_path / str(os.getpid())).touch()
        os.read(os.pipe()[0], 1)

    with pytest.raises(UserError, match="full"), forks.forked(3, wait) as place:
        assert (place.rank, place.world) == (0, 3)
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        raise UserError("full")
    assert not any(Path(f"/proc/{child.name}").exists() for child in tmp_path.iterdir())


class Slow(Forking):
    """Takes so long that it is stopped in the middle."""

    def encode_pixels(self, pixels: Any) -> Any:
        time.sleep(0.3)
        return super().encode_pixels(pixels)


@pytest.mark.parametrize("whom", ["all", "the first"])
def test_a_signal_stops_all_processes_behind_their_parts(root: Path, tmp_path: Path, whom: str) -> None:
    """Ctrl-C reaches every process of a terminal, `kill -INT` one."""
    asked, notes = plan(root), tmp_path / "notes"
    notes.mkdir()
    if not (first := os.fork()):
        os.setpgid(0, 0)
        code = 3
        try:
            backbone: Backbone = Slow(notes)
            run(asked, backbone, prepare(asked, backbone), tmp_path / "run", Way(processes=2))
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while len(list(notes.glob("*"))) + len(list((tmp_path / "run").glob("*/*/*.jsonl"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = [int(path.name) for path in notes.glob("*") if path.name != str(first)]
    (os.killpg if whom == "all" else os.kill)(first, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 130
    assert len(others) == 1 and not Path(f"/proc/{others[0]}").exists()
    go(asked, tmp_path / "one")
    backbone = Slow(notes)
    assert run(asked, backbone, prepare(asked, backbone), tmp_path / "run", Way())
    own = ["cell", "evaluation"]
    found, wanted = (shown(tmp_path / name).drop(columns=own) for name in ("run", "one"))
    pd.testing.assert_frame_equal(found, wanted)


def test_a_number_of_processes_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="processes=0"):
        Way(processes=0)
