"""Asking about one clip: from Python, drawn, and by the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbones.clip_answer import answer_clip, as_clip, encode_clip, ground_clip
from backbones.parts.clips import Frames
from backbones.registry import BACKBONES, Runtime, Settings
from harness import cli, metrics
from harness.engine import single_clip as attempt
from harness.store.run_folder import shown_frames
from pruners import UserError, parse
from reports.clip_overlay import FILM_PIXELS, draw_strip, write_film
from tests import tiny_videoglamm
from tests.fake_backbone import SIDE, Fake, FakeBackbone, known
from tests.fake_video import FakeVideo, a_clip
from tests.films import FRAMES, folder_of, images, video_of

TEXT = "the box that moves"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    @dataclass(frozen=True)
    class FakeVideoSettings(Fake, Settings):
        """For tests."""

        name = "fake-video"
        reference = "tests"
        medium = "video"

        def load(self, how: Runtime) -> FakeVideo:
            return FakeVideo()

    known(monkeypatch)
    BACKBONES.register(FakeVideoSettings)
    monkeypatch.setattr(sys, "argv", ["python -m harness", "try", *map(str, words)])
    return cli.main()


# -- in Python


def test_an_answer_has_a_mask_in_every_frame_and_what_every_view_keeps() -> None:
    found = ground_clip(FakeVideo(), images(), TEXT, pruner="uniform", budget=16)
    assert found.masks.shape == (FRAMES, 24, 32) and found.masks.dtype == np.bool_
    assert np.array_equal(found.mask(3), found.masks[3])
    assert found.shown == (0, FRAMES - 1)
    assert found.kept.shape == (2 * SIDE * SIDE,) and found.kept.sum() == found.tokens_final == 32
    assert found.seconds > 0


def test_clips_come_as_folder_file_arrays_or_clip(tmp_path: Path) -> None:
    frames = images()
    first = ground_clip(FakeVideo(), frames, TEXT)
    for clip in (folder_of(tmp_path / "walk", frames), str(tmp_path / "walk"), Frames.of(frames)):
        assert ground_clip(FakeVideo(), clip, TEXT).runs == first.runs
    film = video_of(tmp_path / "walk.mkv", frames, "ffv1", "bgr0")
    assert ground_clip(FakeVideo(), film, TEXT).runs == first.runs


def test_the_truth_of_the_views_frames_leads_the_oracle() -> None:
    truth = np.zeros((FRAMES, 24, 32), dtype=bool)
    truth[0, :3, :4] = truth[-1, -3:, -4:] = True  # the first patch, and the last one
    found = ground_clip(FakeVideo(), images(), TEXT, "oracle", 1, truth)
    assert found.kept.nonzero()[0].tolist() == [0, 2 * SIDE * SIDE - 1]


@pytest.mark.parametrize(
    ("clip", "told"),
    [
        ([], "has no frame"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "4x4 px and 5x4 px"),
        ("no/such/clip", "is not there"),
        ("tests", "no JPEG or PNG files"),
    ],
)
def test_what_is_no_clip_is_refused(clip: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        as_clip(clip)


def test_a_backbone_of_images_says_so() -> None:
    with pytest.raises(UserError, match="fake sees images alone"):
        ground_clip(FakeBackbone(), images(), TEXT)
    with pytest.raises(UserError, match="cannot keep 65"):
        ground_clip(FakeVideo(), images(), TEXT, "uniform", 65)


def test_scores_are_those_of_the_metrics() -> None:
    video = a_clip("one", 6, 3)
    truth = video.ids == 1
    model = FakeVideo()
    clip = Frames.of(list(video.frames))
    found = attempt.ask_of_clip(model, clip, TEXT, parse("none,uniform,oracle"), 16, truth)
    assert model.encoded == [1] and model.grounded == [1] * 4  # the first one twice
    for one in found.answers:
        (expected,) = metrics.measure(one.answer.masks[None], truth[None].astype(np.uint8), "video", "mevis")
        assert one.j is not None and one.f is not None
        assert (one.j.mean(), one.f.mean()) == (expected["j"], expected["f"])
    blind = attempt.ask_of_clip(FakeVideo(), clip, TEXT, parse("none,oracle,fastv"), 16)
    assert blind.left_out == ("oracle",) and blind.answers[0].j is None
    assert "fastv" in blind.lacking[0]


@pytest.mark.parametrize("placement", ["grid", "postpool"])
def test_videoglamm_is_asked_about_a_clip(placement: str, tmp_path: Path) -> None:
    model = tiny_videoglamm.load(tiny_videoglamm.write(tmp_path / "checkpoint"), placement=placement)
    clip = tiny_videoglamm.clip(5)
    patches = model.grid[0] * model.grid[1]
    found = attempt.ask_of_clip(model, clip, "the dog", parse("none,uniform"), patches // 4)
    whole, few = (one.answer for one in found.answers)
    assert whole.masks.shape == few.masks.shape == (5, clip.height, clip.width)
    assert whole.shown == few.shown and len(whole.kept) == len(whole.shown) * patches
    assert whole.kept.all() and few.kept.sum() == len(few.shown) * (patches // 4)
    assert few.tokens_final == len(few.shown) * model.sent(patches // 4)  # `grid` sends full grids
    draw_strip(found, model.grid, patches // 4, tmp_path / "a.png")
    assert write_film(found, model.grid, tmp_path / "a.gif") == 5


def test_no_pruner_gains_from_the_signals_of_another() -> None:
    model = FakeVideo()
    encoding = encode_clip(model, Frames.of(images()))
    answer_clip(model, encoding, TEXT, parse("visionzip")[0], 16)
    assert encoding.signals == {}


# -- drawn


def asked(count: int = FRAMES, pruners: str = "none,uniform,oracle") -> attempt.ClipAttempts:
    truth = np.zeros((count, 24, 32), dtype=bool)
    for k in range(count):
        truth[k, 4:12, (3 + 2 * k) % 24 : (11 + 2 * k) % 24 + 3] = True
    clip = Frames.of(images(count) if count < 8 else list(a_clip("long", count, 1).frames))
    return attempt.ask_of_clip(FakeVideo(), clip, TEXT, parse(pruners), 4, truth)


def test_the_strip_has_a_line_for_every_pruner(tmp_path: Path) -> None:
    sizes = []
    for pruners in ("none", "none,uniform", "none,uniform,oracle"):
        draw_strip(asked(pruners=pruners), (SIDE, SIDE), 4, tmp_path / "new" / "a.png")
        with Image.open(tmp_path / "new" / "a.png") as opened:
            sizes.append(opened.size)
    assert len({width for width, _ in sizes}) == 1
    gaps = [two - one for (_, one), (_, two) in pairwise(sizes)]
    assert min(gaps) > 100 and max(gaps) - min(gaps) <= 2
    draw_strip(asked(), (SIDE, SIDE), 4, tmp_path / "b.png")
    draw_strip(asked(), (SIDE, SIDE), 4, tmp_path / "c.svg")
    with pytest.raises(UserError, match=r"picture.xyz"):
        draw_strip(asked(), (SIDE, SIDE), 4, tmp_path / "picture.xyz")


def test_the_film_shows_masks_and_kept_patches_of_every_frame(tmp_path: Path) -> None:
    found = asked()
    assert write_film(found, (SIDE, SIDE), tmp_path / "a.gif") == FRAMES
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == FRAMES and film.info["loop"] == 0
        film.seek(2)
        sheet = np.asarray(film.convert("RGB")).astype(int)
    assert sheet.shape == (24 + 15, 4 * 32, 3)
    mask = found.answers[0].answer.mask(2)  # none, which keeps all: the second panel
    panel = sheet[15:, 32:64]
    pink = (panel[..., 0] > panel[..., 1] + 70) & (panel[..., 2] > panel[..., 1] + 70)
    line = found.truth[2] ^ np.roll(found.truth[2], 1, 0) if found.truth is not None else mask
    assert (pink == mask)[~line].mean() > 0.9
    dark = sheet[15:, 64:96].mean() / sheet[15:, :32].mean()  # uniform keeps 4 patches of 64
    assert dark < 0.75


def test_a_long_film_stays_small(tmp_path: Path) -> None:
    found = asked(60, "none,uniform")
    count = write_film(found, (SIDE, SIDE), tmp_path / "a.gif")
    assert count == 48
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames * film.size[0] * film.size[1] <= FILM_PIXELS
        assert film.info["duration"] == 150
    assert shown_frames(60, 48)[0] == 0 and shown_frames(60, 48)[-1] == 59


def test_the_same_answers_give_the_same_files(tmp_path: Path) -> None:
    found = asked()
    for name in ("a", "b"):
        draw_strip(found, (SIDE, SIDE), 4, tmp_path / f"{name}.png")
        write_film(found, (SIDE, SIDE), tmp_path / f"{name}.gif")
    for kind in ("png", "gif"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


# -- by the command line


def test_the_command_writes_a_strip_and_a_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = folder_of(tmp_path / "walk", images())
    out = tmp_path / "new" / "seen.png"
    options = ("--backbone", "fake-video", "--budget", 16, "--pruners", "none,uniform,oracle", "--out", out)
    assert command(monkeypatch, clip, TEXT, *options) == 0
    told = capsys.readouterr().out
    assert "only the truth tells them what to keep: oracle" in told
    assert "uniform                    32 tokens" in told and " J " not in told
    assert "clip: 5 frames of 32x24 px, of which the model sees 0, 4" in told
    assert f"picture: {out}\nfilm: {out.with_suffix('.gif')} (5 frames)" in told
    assert out.stat().st_size > 5_000 and out.with_suffix(".gif").stat().st_size > 1_000


def test_the_command_takes_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film = video_of(tmp_path / "walk.mp4", images())
    monkeypatch.chdir(tmp_path)
    assert (
        command(monkeypatch, film, TEXT, "--backbone", "fake-video", "--pruners", "uniform", "--budget", 8)
        == 0
    )
    assert "uniform                    16 tokens" in capsys.readouterr().out
    assert (tmp_path / "try.png").is_file() and (tmp_path / "try.gif").is_file()


def test_without_a_clip_there_is_one_with_its_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backbone", "fake-video", "--pruners", "uniform,oracle", "--budget", 16, "--out")
    assert command(monkeypatch, *options, tmp_path / "a.png") == 0
    told = capsys.readouterr().out
    assert told.count(" J ") == told.count(" F ") == 2
    assert command(monkeypatch, "what nobody said", *options, tmp_path / "a.png") == 0
    told = capsys.readouterr().out
    assert " J " not in told and "what to keep: oracle" in told


def test_the_built_in_clip_is_the_first_by_its_motion() -> None:
    asked = attempt.built_in_clip_subject()
    clip, text, truth = asked.clip, asked.expression, asked.truth
    assert truth is not None and truth.shape == (len(clip), clip.height, clip.width) and truth.any()
    again = attempt.built_in_clip_subject(text)
    assert again.expression == text and again.truth is not None and np.array_equal(again.truth, truth)
    assert np.array_equal(again.clip.frame(0), clip.frame(0)) and text not in again.others


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such.mp4", "it"], "no_such.mp4"),
        (["photo.jpg", "it"], "is a picture"),
        (["walk"], "Add an expression"),
        (["walk", " "], "expression is empty"),
        (["walk", "it", "--budget", "99"], "cannot keep 99"),
        (["walk", "it", "--out", "picture.xyz"], "picture.xyz"),
        (["walk", "it", "--backbone", "fake"], "fake looks at images, and 'walk' is a clip"),
        (["walk.mp4", "it", "--backbone", "fake"], "or a video backbone, e.g."),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "walk", images())
    Image.fromarray(images()[0]).save("photo.jpg")
    options = [] if "--budget" in words else ["--budget", "8"]
    options += [] if "--backbone" in words else ["--backbone", "fake-video"]
    assert command(monkeypatch, *words, "--pruners", "uniform", *options) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
