"""Answers as servers and DAVIS' evaluator take them: what is written is accepted, and what is bad is refused
in one sentence."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from backbones.parts.clips import BETWEEN, decoded, run_lengths
from harness import cli
from harness.data import DataError, Sample, content
from harness.data.video.archive import Answer, validate_submission, write_davis_results, write_submission
from harness.engine.runner import Plan, prepare, run
from harness.store import records
from harness.submission import answers, chosen
from pruners import UserError, parse
from tests.fake_video import FakeVideo
from tests.video_trees import DAVIS, HEIGHT, MEVIS, WIDTH, YOUTUBE, change, davis, load, mevis, youtube

SERVED = ["ref-youtube-vos:valid", "mevis:valid"]


def answered(sample: Sample, expression: int) -> np.ndarray:
    """What is answered to an expression: noise of its own, (T, H, W) bool."""
    size = (len(sample.frames), sample.height, sample.width)
    seed = sum(map(ord, sample.id)) + 1000 * expression
    return np.random.default_rng(seed).random(size) > 0.5


def rows_of(samples: list[Sample], cell: str = "c0ffee", pruner: str = "none") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample": sample.id,
            "expression": one.id,
            "dataset": sample.dataset,
            "split": sample.split,
            "cell": cell,
            "pruner": pruner,
            "budget": 576,
            "seg_said": 1.0,
            "mask": BETWEEN.join(run_lengths(frame) for frame in answered(sample, one.id)),
        }
        for sample in samples
        for one in sample.expressions
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for write in (davis, youtube, mevis):
        write(tmp_path / "data")
    return tmp_path / "data"


def pixels(archive: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(archive) as opened:
        return np.array(Image.open(io.BytesIO(opened.read(name))))


# --- archives


@pytest.mark.parametrize(
    ("which", "video", "name"),
    [(SERVED[0], "dog", "Annotations/dog/1/00010.png"), (SERVED[1], "fish", "fish/1/00002.png")],
)
def test_what_is_written_is_accepted(tree: Path, tmp_path: Path, which: str, video: str, name: str) -> None:
    dataset, split = which.split(":")
    samples = load(tree, which)
    rows = rows_of(samples).sample(frac=1, random_state=0)
    count = sum(len(sample.frames) * len(sample.expressions) for sample in samples)
    for file in ("a.zip", "b.zip"):
        assert write_submission(answers(rows, samples), dataset, tmp_path / file) == count
        assert validate_submission(tmp_path / file, dataset, split, tree) == count
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (sample,) = [one for one in samples if one.id.endswith(video)]
    assert (pixels(tmp_path / "a.zip", name) == 255 * answered(sample, 1)[2]).all()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "a.zip", "b.zip"}, "nothing is left behind"


Edit = Callable[[dict[str, bytes]], object]
FIRST = "Annotations/dog/0/00005.png"


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def renamed(files: dict[str, bytes]) -> None:
    """By running index, as some write them."""
    files["Annotations/dog/0/00001.png"] = files.pop(FIRST)


def below(files: dict[str, bytes]) -> None:
    for name in list(files):
        files[f"results/{name}"] = files.pop(name)


def grey(value: int) -> Edit:
    return lambda files: files.update({FIRST: png(Image.new("L", (WIDTH, HEIGHT), value))})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda files: files.pop(FIRST), f"lacks 1 of 14 pictures, the first is '{FIRST}'; answer every"),
        (renamed, f"lacks 1 of 14 pictures, the first is '{FIRST}'; answer every"),
        (below, r"lacks 14 of 14 .* \('results/Annotations/ant/0/00000\.png' stands in its place\)"),
        (lambda files: files.update({"Annotations/x.txt": b""}), r"1 files that nobody asks for, .*x\.txt'"),
        (grey(1), f"'{FIRST}' in .* has the value 1, and 0 and 255 alone are due"),
        (
            lambda files: files.update({FIRST: png(Image.new("L", (WIDTH, HEIGHT + 1)))}),
            "has 64x41 px, and its frame 64x40",
        ),
        (lambda files: files.update({FIRST: png(Image.new("RGB", (WIDTH, HEIGHT)))}), "has the mode RGB"),
        (lambda files: files.update({FIRST: png(Image.new("1", (WIDTH, HEIGHT)))}), "has the mode 1, "),
        (lambda files: files.update({FIRST: png(Image.new("L", (WIDTH, HEIGHT)))[:40]}), "is no PNG that"),
        (lambda files: files.update({FIRST: b"GIF89a"}), "is no PNG that can be read"),
    ],
)  # fmt: skip
def test_bad_archives_are_refused(tree: Path, tmp_path: Path, edit: Edit, said: str) -> None:
    samples = load(tree, YOUTUBE)
    write_submission(answers(rows_of(samples), samples), "ref-youtube-vos", tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    edit(files)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    with pytest.raises(DataError, match=said) as caught:
        validate_submission(tmp_path / "bad.zip", "ref-youtube-vos", "valid", tree)
    assert "\n" not in str(caught.value)


def test_what_is_no_archive_is_refused(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with pytest.raises(DataError, match="cannot be read"):
        validate_submission(path, "mevis", "valid", tree)
    samples = load(tree, "mevis:valid")
    write_submission(answers(rows_of(samples), samples), "mevis", path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="is no whole zip file"):
        validate_submission(path, "mevis", "valid", tree)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as made:
        for _ in range(2):
            made.writestr("fish/0/00000.png", b"")
    with pytest.raises(DataError, match="holds a file twice under one name"):
        validate_submission(path, "mevis", "valid", tree)
    with pytest.raises(DataError, match="ref-davis17 has no server that takes a zip, ref-youtube-vos"):
        write_submission([], "ref-davis17", path)
    with pytest.raises(DataError, match=r"cannot be written \(No such file"):
        write_submission([], "mevis", tmp_path / "no" / "x.zip")


@pytest.mark.parametrize("count", [1, 3])
def test_an_answer_has_one_mask_per_frame(tmp_path: Path, count: int) -> None:
    masks = (np.ones((HEIGHT, WIDTH), dtype=bool) for _ in range(count))
    with pytest.raises(DataError, match="expression 4 of dog has not one mask for each of 2 frames"):
        write_submission([Answer("dog", 4, ["00000", "00005"], masks)], "mevis", tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())


# --- Ref-DAVIS


def test_ref_davis_for_its_own_evaluator(tree: Path, tmp_path: Path) -> None:
    samples = load(tree, DAVIS)
    out = tmp_path / "out"
    assert write_davis_results(answers(rows_of(samples), samples), samples, out) == 4 * 6
    assert sorted(path.name for path in out.iterdir()) == ["anno_0", "anno_1", "anno_2", "anno_3"]
    bear = samples[0]
    for group in range(4):
        first, second = answered(bear, group), answered(bear, 4 + group)
        wanted = np.where(first, 1, np.where(second, 2, 0))  # where they overlap, the first one wins
        for place in range(3):
            with Image.open(out / f"anno_{group}" / "bear" / f"{place:05d}.png") as picture:
                assert picture.mode == "P" and (np.array(picture) == wanted[place]).all()


def test_ref_davis_wants_every_answer_once(tree: Path, tmp_path: Path) -> None:
    samples = load(tree, DAVIS)
    held = list(answers(rows_of(samples), samples))

    def again() -> Iterator[Answer]:
        for answer in held:
            clip_ = samples[0] if answer.video == "bear" else samples[1]
            yield Answer(answer.video, answer.expression, answer.frames, answered(clip_, answer.expression))

    made = list(again())
    for bad, said in (
        (made[:8], "1 of 2 videos have no answer, the first is cat"),
        (made[1:], "1 expressions of bear have no answer"),
        ([made[0], *made], "is answered twice"),
        ([*made, made[0]], "'bear' is answered where it is not asked for"),
        ([Answer("../x", 0, [], [])], "'../x' is answered where"),
    ):
        with pytest.raises(DataError, match=said):
            write_davis_results(bad, samples, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}, "nothing is left behind"


def test_ref_davis_mixes_no_answers(tree: Path, tmp_path: Path) -> None:
    """Pictures of another run would be scored with these."""
    samples = load(tree, DAVIS)
    old = tmp_path / "out" / "anno_0" / "bear" / "00099.png"
    old.parent.mkdir(parents=True)
    old.touch()
    (tmp_path / "file").touch()
    for out, why in (
        (tmp_path / "out", "is there already and not empty"),
        (tmp_path / "file", "is there already and not empty"),
        (tmp_path / "file" / "out", "cannot be written"),
    ):
        with pytest.raises(DataError, match=why):
            write_davis_results(answers(rows_of(samples), samples), samples, out)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out", "file"}


# --- of a run


def fake_run(monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame, samples: list[Sample]) -> None:
    described = pd.DataFrame(
        {"sample": one.id, "height": one.height, "width": one.width, "content": content(one)}
        for one in samples
    )
    monkeypatch.setattr(records, "load_records", lambda path: rows)
    monkeypatch.setattr(records, "samples", lambda path: described)


def command(*words: str | Path) -> str:
    result = CliRunner().invoke(cli.app, ["submission", *map(str, words)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("which", [*SERVED, DAVIS])
def test_the_command_writes_and_checks(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    samples = load(tree, which)
    rows = rows_of(samples)
    rows.loc[rows.index[-1], ["mask", "seg_said"]] = ["", 0.0]  # no [SEG]: empty masks, and counted
    fake_run(monkeypatch, rows, samples)
    said = command("run", "--data", tree, "--out", tmp_path / "out.zip")
    assert f"{len(rows)} expressions of {which}, 1 of them answered without [SEG]" in said
    last = samples[-1]
    if which != DAVIS:
        top = "Annotations/" if which == YOUTUBE else ""
        name = f"{top}{last.id.split(':')[2]}/{last.expressions[-1].id}/{last.frames[0].stem}.png"
        assert not pixels(tmp_path / "out.zip", name).any()


def test_what_is_meant_must_be_clear(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [*load(tree, SERVED[0]), *load(tree, SERVED[1])]
    rows = pd.concat([rows_of(both), rows_of(both, "beef", "uniform")], ignore_index=True)
    fake_run(monkeypatch, rows, both)
    out = ("--data", tree, "--out", tmp_path / "x.zip")
    with pytest.raises(UserError, match="answers to mevis:valid, ref-youtube-vos:valid; say which"):
        command("run", *out)
    with pytest.raises(UserError, match=r"2 of .*: none@576 \(c0ffee\), uniform@576 \(beef\)"):
        command("run", *out, "--datasets", "mevis")
    with pytest.raises(UserError, match="0 of the run's cells are meant"):
        command("run", *out, "--datasets", "mevis", "--cell", "fastv@64")
    for cell in ("uniform@576", "bee"):
        assert "of mevis:valid" in command("run", *out, "--datasets", "mevis:valid", "--cell", cell)
    fake_run(monkeypatch, rows.assign(dataset="refcoco"), both)
    with pytest.raises(UserError, match="no video that can be submitted, which are ref-youtube-vos, mevis"):
        command("run", *out)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: rows.drop(index=1), "1 of 2 expressions have no answer, the first is expression 1 of"),
        (lambda rows: rows.assign(mask=""), "expression 0 of mevis:valid:fish has 1 masks for 3 frames"),
        (lambda rows: rows.assign(mask=BETWEEN.join(["00"] * 3)), "is no mask: .*do not add up to 2560"),
        (lambda rows: rows.assign(mask=BETWEEN.join(["!"] * 3)), "is no mask: .*a character that they"),
    ],
)  # fmt: skip
def test_records_that_answer_nothing(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[pd.DataFrame], pd.DataFrame],
    said: str,
) -> None:
    samples = load(tree, "mevis:valid")
    fake_run(monkeypatch, edit(rows_of(samples)), samples)
    with pytest.raises(UserError, match=said):
        command("run", "--data", tree, "--out", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_other_data_than_the_run_answered(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = load(tree, "mevis:valid")
    fake_run(monkeypatch, rows_of(samples), samples)
    path = tree / "mevis/valid/meta_expressions.json"
    change(path, lambda all_: all_["videos"]["fish"]["expressions"]["0"].update(exp="Another"))
    with pytest.raises(UserError, match="mevis:valid:fish is not what the run answered"):
        command("run", "--data", tree, "--out", tmp_path / "x.zip")


def test_one_cell_needs_no_choice(tree: Path) -> None:
    rows = rows_of(load(tree, MEVIS))
    assert len(chosen(rows, "")) == len(rows)


@pytest.mark.parametrize("which", [*SERVED, DAVIS])
def test_a_real_run_is_submitted(tree: Path, tmp_path: Path, which: str) -> None:
    pair = tuple(which.split(":"))
    plan = Plan(tuple(parse("none,uniform")), (16,), (pair,), data=str(tree))  # type: ignore[arg-type]
    backbone = FakeVideo()
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    rows = records.load_records(tmp_path / "run")
    rows = rows[rows["pruner"] == "uniform"]
    silent = int((rows["seg_said"] == 0).sum())
    said = command(
        tmp_path / "run",
        "--data",
        tree,
        "--out",
        tmp_path / "out",
        "--cell",
        "uniform@16",
        "--datasets",
        which,
    )
    assert f"{len(rows)} expressions of {which}, {silent} of them answered without [SEG]" in said
    row = rows.iloc[0]
    masks = decoded(str(row["mask"]), HEIGHT, WIDTH)
    if which != DAVIS:
        video = str(row["sample"]).split(":")[2]
        top, step = ("Annotations/", 5) if which == YOUTUBE else ("", 1)
        name = f"{top}{video}/0/{step * (len(masks) - 1):05d}.png"
        assert (pixels(tmp_path / "out", name) == 255 * masks[-1]).all()
