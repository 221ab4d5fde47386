"""VideoGLaMM's clips: lengths and windows, company, frames that cannot be read, both kinds of segmenters, and
how frames reach the video encoder; on tiny random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
from backbones.clip_answer import ground_clip
from backbones.parts.clips import Clip
from backbones.parts.generation import Writer
from backbones.parts.llama import Past
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.preprocess import sampled, stretched
from harness.engine.runner import Plan, prepare, run
from harness.store.records import load_records
from pruners import UserError, parse
from tests import tiny_videoglamm as tiny
from tests.fake_video import write_clips
from tests.test_videoglamm import NEW, VISUAL, masks, one, same, short


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("videoglamm"))


@pytest.fixture(scope="module")
def checkpoint2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With SAM2."""
    return tiny.write(tmp_path_factory.mktemp("videoglamm2"), sam2=True)


@pytest.fixture
def model(checkpoint: Path) -> VideoGlammBackbone:
    return short(tiny.load(checkpoint))


# -- frames


def test_frames_that_are_seen() -> None:
    """Evenly, cut to whole numbers; the last one again and again of a short clip."""
    assert sampled(64, 16) == tuple(int(k * 63 / 15) for k in range(16))
    assert sampled(16, 16) == tuple(range(16)) and sampled(3, 4) == (0, 1, 2, 2)


@pytest.mark.parametrize("frames", [0, -3, 1025])
def test_how_many_frames_can_be_seen(frames: int) -> None:
    with pytest.raises(UserError, match=f"cannot see {frames} frames of a clip; give frames=1 to 1024"):
        backbones.get("videoglamm-3.8b")(frames=frames)


@pytest.mark.parametrize("size", [(480, 854), (96, 171), (97, 333), (100, 80), (1, 1), (3, 700)])
def test_frames_are_stretched_as_officially(size: tuple[int, int]) -> None:
    opencv = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert (stretched(image, 224) == opencv.resize(image, (224, 224))).all()


def test_an_answer_holds_the_latest_keys_alone(
    model: VideoGlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of thousands of tokens do not pile up, one copy for every token that is written."""
    (encoding,) = model.encode([tiny.clip(2)])
    made: list[Past] = []
    whole = Past.__init__
    monkeypatch.setattr(Past, "__init__", lambda self, *how: [made.append(self), whole(self, *how)][1])
    written = Writer.__call__
    inside: list[int] = []

    def watched(self: Writer, *how: object) -> object:
        inside.append(len(made))
        return written(self, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "__call__", watched)
    one(model, tiny.row(model, encoding, "none"))
    assert len(made) - inside[0] >= NEW - 1
    assert all(past.before is None for past in made[inside[0] :])


# -- clips


@pytest.mark.parametrize(("length", "window"), [(1, 0), (3, 0), (7, 3), (4, 4)])
def test_clips_of_any_length(
    model: VideoGlammBackbone, length: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tiny.clip(length, window)
    (encoding,) = model.encode([clip])
    calls = len(clip.windows())
    shown = {1: (0, 0), 3: (0, 2), 7: (0, 2, 3, 5, 6, 6), 4: (0, 3)}[length]
    assert encoding.shown == shown and len(encoding.hidden_states[-1]) == calls * tiny.FRAMES  # type: ignore[attr-defined]
    row = tiny.row(model, encoding, "uniform", 196)
    found = one(model, replace(row, answers="forced"))
    assert masks(found, clip).shape == (length, 30, 44) and not found.error
    assert found.lengths == (calls * VISUAL,) * 4
    wanted = torch.cat([chosen.indices + k * 576 for k, chosen in enumerate(row.selections)])
    assert found.retained.equal(wanted)
    inside = one(model, tiny.row(model, encoding, "fastv(layer=1)", 30, answers="forced"))
    assert inside.lengths[-1] == calls * tiny.FRAMES * 30
    assert sorted(set((inside.retained // 576).tolist())) == list(range(calls * tiny.FRAMES))


def test_what_cuts_inside_counts_what_the_pool_leaves(model: VideoGlammBackbone, tmp_path: Path) -> None:
    """A mean of 80 of 144 cells, which could not be a mean over 576 patches."""
    root = write_clips(tmp_path, 1, 2)
    plan = Plan(tuple(parse("none,feather")), (81,), (("mevis", "valid_u"),), data=str(root))
    assert run(plan, model, prepare(plan, model), tmp_path / "run")
    rows = load_records(tmp_path / "run")
    assert set(rows["pruner"]) == {"none", "feather"}


def test_half_a_character_is_no_expression(model: VideoGlammBackbone) -> None:
    """As the command line makes one of a byte that is no UTF-8."""
    with pytest.raises(UserError, match="is no text in UTF-8"):
        ground_clip(model, tiny.clip(1), "the \udcff star", "uniform", 81)


def test_windows_are_clips_of_their_own(model: VideoGlammBackbone) -> None:
    whole = tiny.clip(6, 3)
    pieces = [replace(whole, window=0, images=whole.images[k : k + 3]) for k in (0, 3)]
    found = []
    for clip in (whole, *pieces):
        (encoding,) = model.encode([clip])
        found.append(masks(one(model, tiny.row(model, encoding, "none", answers="forced")), clip))
    assert (found[0] == np.concatenate(found[1:])).all()


def test_company_changes_no_bit(model: VideoGlammBackbone, checkpoint: Path) -> None:
    clips = [tiny.clip(5), tiny.clip(3, seed=1)]
    encodings = model.encode(clips)
    for clip, encoding in zip(clips, encodings, strict=True):
        (alone,) = model.encode([clip])
        assert all(map(torch.equal, alone.hidden_states, encoding.hidden_states))
        assert alone.embedding.equal(encoding.embedding)
    rows = [
        tiny.row(model, encoding, text, budget, words, answers=answers)
        for answers in ("forced", "generated")
        for words in ("the red star", "it")
        for text, budget in (("none", 0), ("uniform", 196), ("fastv(layer=1)", 30))
        for encoding in encodings
    ]
    together = list(model.ground_rows(rows))
    other = short(tiny.load(checkpoint, batch_size=1))
    for row, first, second in zip(rows, together, other.ground_rows(rows), strict=True):
        alone = one(model, row)
        for found in (alone, second):
            same(first, found)
            assert first.runs == found.runs


class Torn(Clip):
    """A clip whose last frame cannot be read."""

    def __len__(self) -> int:
        return 4

    def frame(self, number: int) -> np.ndarray:
        if number == 2:
            raise UserError("Frame 2 cannot be read; copy it again.")
        return tiny.clip(4).frame(number)


def test_a_frame_that_cannot_be_read_spoils_its_clip_alone(model: VideoGlammBackbone) -> None:
    torn = Torn(30, 44, 0)
    encodings = model.encode([torn, tiny.clip(4)])
    rows = [
        tiny.row(model, encoding, "none", 0, words, answers="forced")
        for encoding in encodings
        for words in ("the red star", "it")
    ]
    found = list(model.ground_rows(rows))
    assert [one.error for one in found] == ["Frame 2 cannot be read; copy it again."] * 2 + [""] * 2
    assert masks(found[2], tiny.clip(4)).any()


def test_a_clip_too_long_for_the_model(checkpoint: Path) -> None:
    model = short(tiny.load(checkpoint, placement="direct"))
    model.model.language_model.config.max_position_embeddings = 700
    (encoding,) = model.encode([tiny.clip(2)])
    rows = [tiny.row(model, encoding, *how) for how in (("none",), ("uniform", 100))]
    first, second = model.ground_rows(rows)
    assert "has 700 positions" in first.error and not second.error


# -- segmenters


def test_both_branches_of_sam2(checkpoint2: Path) -> None:
    clip, found = tiny.clip(6), {}
    for branch in ("video", "framewise"):
        model = short(tiny.load(checkpoint2, branch=branch))
        assert model.facts["branch"] == branch
        (encoding,) = model.encode([clip])
        rows = [
            tiny.row(model, encoding, "none", 0, words, answers="forced") for words in ("the red star", "it")
        ]
        together = list(model.ground_rows(rows))
        assert [one.runs for one in together] == [one(model, row).runs for row in rows]
        found[branch] = masks(together[0], clip)
    assert not (found["video"] == found["framewise"]).all()


def test_sam_follows_nothing(checkpoint: Path) -> None:
    assert tiny.load(checkpoint).branch == "framewise"
    asked = backbones.get("videoglamm")(checkpoint=str(checkpoint), clip=str(tiny.CLIP), branch="video")
    with pytest.raises(UserError, match="SAM here, which follows nothing"):
        backbones.load(asked)
    with pytest.raises(UserError, match="SAM here, which follows nothing"):
        asked.shapes()
    (last,) = [one for one in asked.examine() if one.level == "wrong"]
    assert "give branch='framewise'" in last.what


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.no_grad():
        yield
