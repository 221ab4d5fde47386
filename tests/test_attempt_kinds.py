"""What `try` says before it answers: what the model was not trained on, what it asks, and where it writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backbones
from backbones.mini.kind import COLOURS, is_scene, statistics
from backbones.parts.clips import Frames
from backbones.registry import BACKBONES, Runtime, Settings
from harness import cli
from harness.data.refclips.writer import videos
from harness.data.refshapes import scenes
from harness.data.refshapes.writer import scene
from harness.engine import single_clip, single_image
from pruners.errors import UserError
from reports.files import film_files, picture_file
from reports.kept import kept_words, lit
from tests.bench import kinds
from tests.fake_backbone import Fake, FakeBackbone, known

REAL = "--backbone glamm --checkpoint DIR"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "try", *map(str, words)])
    return cli.main()


# -- the kind of a picture


def test_the_colours_are_those_of_the_scenes() -> None:
    assert set(COLOURS) == set(scenes.COLORS.values())


def test_scenes_are_known_however_they_come_back() -> None:
    judged = [(kind, is_scene(image)) for kind, image in kinds.scenes(1)]
    assert len(judged) == 8 * len(kinds.SPLITS)
    assert not [kind for kind, good in judged if not good]


def test_nothing_else_is_a_scene() -> None:
    told = [(kind, statistics(image)) for kind, image in kinds.others([]) if is_scene(image)]
    assert not told
    made = scene("val", 0).image
    assert not is_scene(255 - made) and not is_scene(made[::-1, :, ::-1] // 3)
    assert not is_scene(np.repeat(made[..., :1], 3, 2))  # without its colours


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 400, 3), (7, 3, 3), (3000, 20, 3)])
def test_odd_sizes_are_no_scenes(shape: tuple[int, int, int]) -> None:
    assert not is_scene(np.full(shape, 120, np.uint8))


def test_the_families_say_so_in_one_sentence_with_the_way_on() -> None:
    photo = next(image for kind, image in kinds.others([]) if kind == "sample of matplotlib")
    for name, real in (("glamm-mini", "glamm"), ("videoglamm-mini", "videoglamm")):
        family = backbones.one(name)
        told = family.unlike(photo)
        assert told is not None and name in told and f"--backbone {real} --checkpoint DIR" in told
        assert told.count(". ") == 0 and told.endswith(".")
        assert family.unlike(scene("val", 3).image) is None
    assert FakeBackbone().unlike(photo) is None  # who does not tell is not asked


def test_a_clip_is_unlike_where_no_frame_is_of_its_kind() -> None:
    family = backbones.one("videoglamm-mini")
    clip, _ = next(videos("refclips-davis"))
    frames = list(clip.frames)
    blank = np.full_like(frames[0], 128)
    assert single_clip.unlike_clip(family, Frames.of(frames)) is None
    assert single_clip.unlike_clip(family, Frames.of([frames[0], *[blank] * 4])) is None
    assert "RefClips" in (single_clip.unlike_clip(family, Frames.of([blank] * 5)) or "")
    for name in ("refclips-mevis", "refclips-ytvos"):
        for other, _ in islice(videos(name), 2):
            assert single_clip.unlike_clip(family, Frames.of(list(other.frames))) is None


# -- the command


@dataclass(frozen=True)
class Picky(Fake, Settings):
    """A fake that knows bright pictures alone."""

    name = "picky"
    reference = "tests"

    def unlike(self, image: np.ndarray) -> str | None:
        return None if image.mean() > 128 else f"picky knows bright pictures alone; give {REAL}."

    def load(self, how: Runtime) -> FakeBackbone:
        return FakeBackbone()


def test_the_warning_goes_to_stderr_and_into_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    BACKBONES.register(Picky)
    monkeypatch.chdir(tmp_path)
    for name, level in (("dark", 20), ("bright", 220)):
        Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(f"{name}.png")
        options = ("--backbone", "picky", "--pruners", "uniform", "--budget", 8, "--out", f"{name}-seen.svg")
        assert command(monkeypatch, f"{name}.png", "the star", *options) == 0
        told = capsys.readouterr()
        assert (f"picky knows bright pictures alone; give {REAL}." in told.err.splitlines()) == (level == 20)
        assert told.out.splitlines()[0] == "asked: the star" and "others" not in told.out
        assert ("picky knows bright" in Path(f"{name}-seen.svg").read_text()) == (level == 20)


def test_it_prints_what_it_asks_and_what_else_is_known_of_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    monkeypatch.chdir(tmp_path)
    asked = single_image.built_in_subject()
    options = ("--backbone", "fake", "--pruners", "uniform,downsample", "--budget", 8)
    assert command(monkeypatch, *options) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"asked: {asked.expression}\n") and f'"{asked.others[0]}"' in told
    assert "picture: try.png" in told and "(8 without a place)" in told
    assert command(monkeypatch, asked.others[0], *options) == 0  # its truth is known, too
    told = capsys.readouterr().out
    assert told.startswith(f"asked: {asked.others[0]}\n") and told.count("IoU") == 2


# -- where it is written


def test_the_file_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for asked, written in (
        (None, "try.png"),
        ("x", "x.png"),
        ("here", "here/try.png"),
        ("new/x.SVG", "new/x.SVG"),
    ):
        assert picture_file(asked and Path(asked), "try") == Path(written)
    assert film_files(Path("x.gif"), "try") == (Path("x.png"), Path("x.gif"))
    assert film_files(Path("x.pdf"), "try") == (Path("x.pdf"), Path("x.gif"))
    assert film_files(Path("here"), "try") == (Path("here/try.png"), Path("here/try.gif"))
    assert film_files(None, "try") == (Path("try.png"), Path("try.gif"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # trying leaves nothing behind


@pytest.mark.parametrize(
    ("out", "told"), [("x.gif", "of a clip"), ("x.pgn", "Did you mean '.png'"), ("file/x.png", "file")]
)
def test_what_cannot_be_written_is_refused_before_the_model_loads(
    out: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr("harness.plan.Plan.load", lambda *_: pytest.fail("loaded"))
    assert command(monkeypatch, "--backbone", "fake", "--out", out) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_file_is_not_hurt_by_trying(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    assert picture_file(tmp_path / "a.png", "try").read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"give \.png"):
        picture_file(tmp_path / "a.tar.gz", "try")


# -- panels


def test_a_token_without_a_place_is_told_and_a_pool_darkens_nothing() -> None:
    none, some = np.zeros(6, dtype=bool), np.array([True, False, False, False, False, False])
    assert lit(none).all() and (lit(some) == some).all()
    assert kept_words(2, 1) == "1 patch, 1 without a place"
    assert kept_words(1200, 1200) == "1,200 patches"
