"""Generated clips: seeded, told truly, twins that motion alone tells apart, layouts that read back equal."""

from __future__ import annotations

from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest

from harness.data.refclips import scenes, writer
from harness.data.refclips.dataset import RefClips
from harness.data.refclips.language import FAMILIES, MARGIN, describe, describe_clip, describe_groups, does
from harness.data.refclips.scenes import GAP, HEIGHT, WIDTH, Actor, PaintedClip, generate, ways_apart
from harness.data.refclips.splits import clip_seed, painted
from harness.data.registry import load_samples, parse_datasets
from harness.data.sample import DataError
from harness.data.video.painted import VOID
from harness.data.video.places import FILES

CLIPS = 40
SOME = 3  # clips that are written


@pytest.fixture(scope="module")
def clips() -> list[PaintedClip]:
    return [painted("train", index) for index in range(CLIPS)]


def test_a_seed_is_a_clip() -> None:
    one, again, other = generate(7), generate(7), generate(8)
    assert (one.frames == again.frames).all() and one.actors == again.actors
    assert one.frames.shape != other.frames.shape or (one.frames != other.frames).any()
    names = ("train", "davis", "mevis", "youtube", "held")
    assert len({clip_seed(name, index) for name in names for index in range(50)}) == 250


def test_sizes(clips: list[PaintedClip]) -> None:
    lengths = {len(clip.frames) for clip in clips}
    assert min(lengths) >= scenes.FRAMES[0] and scenes.FRAMES[1] < max(lengths) <= scenes.LONG[1]
    for clip in clips:
        assert clip.frames.shape[1:] == (HEIGHT, WIDTH, 3) and 2 <= len(clip.actors) <= 4
        assert clip.masks.shape == (len(clip.actors), *clip.frames.shape[:3])
        assert clip.masks.sum(0).max() <= 1, "a pixel has one owner"


def test_twins_differ_in_motion_alone(clips: list[PaintedClip]) -> None:
    """Same looks, same pixels where both are wholly seen; other motions; and no two objects look the same
    that are no twins."""
    pairs = compared = 0
    for clip in clips:
        for (i, a), (j, b) in combinations(enumerate(clip.actors), 2):
            same = (a.shape, a.color, a.texture, a.size) == (b.shape, b.color, b.texture, b.size)
            assert same == (a.twin == j and b.twin == i)
            if not same:
                continue
            pairs += 1
            assert a.motion != b.motion and a.radius == b.radius
            shown = [cut(clip, k, actor) for k, actor in ((i, a), (j, b))]
            if all(part is not None for part in shown):
                compared += 1
                # up to the noise of every frame
                assert np.abs(np.subtract(*shown, dtype=np.int16)).max() <= 14  # type: ignore[call-overload]
    assert pairs > CLIPS / 4 and compared > pairs / 3


def cut(clip: PaintedClip, k: int, actor: Actor) -> np.ndarray | None:
    """The object's pixels in the first frame that shows it wholly."""
    whole = clip.masks[k].sum((1, 2)).max()
    for t in range(len(clip.frames)):
        x, y = actor.place(t / (len(clip.frames) - 1))
        half = int(actor.radius) + 1
        inside = half < x < WIDTH - half and half < y < HEIGHT - half
        if inside and clip.masks[k, t].sum() == whole and clip.bar is None:
            window = (slice(y - half, y + half), slice(x - half, x + half))
            return clip.frames[t][window] * clip.masks[k, t][window][..., None]
    return None


def test_objects_move_as_they_are_said_to(clips: list[PaintedClip]) -> None:
    for clip in clips:
        for k, actor in enumerate(clip.actors):
            way = np.subtract(actor.end, actor.start)
            along = scenes.DIRECTION[actor.motion]
            assert (actor.motion == "still") == (not way.any())
            if actor.motion != "still":
                assert way @ np.array(along) > 3 * abs(way @ np.array(along[::-1]))
            seen = clip.masks[k].any((1, 2))
            if actor.enters:
                assert not seen[: len(seen) // 5].any() and seen[-1]
            if actor.leaves:
                assert not seen[-(len(seen) // 5) :].any() and seen[0]
            if clip.bar is None and not actor.enters and not actor.leaves:
                assert seen.all()


def test_late_entries_leaves_and_bars_happen(clips: list[PaintedClip]) -> None:
    actors = [actor for clip in clips for actor in clip.actors]
    assert any(a.enters for a in actors) and any(a.leaves for a in actors)
    assert {a.motion for a in actors} == set(scenes.DIRECTION)
    barred = [clip for clip in clips if clip.bar is not None]
    assert barred
    for clip in barred:
        assert clip.bar is not None and not clip.masks[..., clip.bar[0] : clip.bar[1]].any()


def test_ways_stay_apart(clips: list[PaintedClip]) -> None:
    for clip in clips:
        for a, b in combinations(clip.actors, 2):
            assert ways_apart(a, b) >= GAP


def said_of(text: str, actors: tuple[Actor, ...]) -> list[int]:
    """A reader of its own: the objects that an expression is true of."""
    words = text.split()
    deeds = {
        "left": ("moving left", "to the left"),
        "right": ("moving right", "to the right"),
        "up": ("moving up", "going up", "upwards"),
        "down": ("moving down", "going down", "downwards"),
        "still": ("still", "does not move", "stays"),
        "enters": ("enters late", "enter late", "comes in later", "not there at first"),
        "leaves": ("that leave", "goes out", "gone at the end"),
    }
    told = [deed for deed, forms in deeds.items() if any(form in text for form in forms)]
    axis = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
    sides = [axis[word] for word in words if word in axis] if not told else []
    true = []
    for k, actor in enumerate(actors):
        looks = all(
            getattr(actor, name) in text
            for name, values in (
                ("shape", scenes.SHAPES),
                ("color", scenes.COLORS),
                ("texture", scenes.TEXTURES),
                ("size", scenes.SIZES),
            )
            if any(value in text for value in values)
        )
        if looks and all(does(actor, deed) for deed in told):
            true.append(k)
    for place, sign in sides:
        best = [k for k in true if all(beyond(actors[k], actors[o], place, sign) for o in true if o != k)]
        true = best
    return true


def beyond(a: Actor, b: Actor, axis: int, sign: int) -> bool:
    """Whether `a` lies farther than `b` by the margin in first and last frame."""
    return all(sign * (p[axis] - q[axis]) >= MARGIN for p, q in ((a.start, b.start), (a.end, b.end)))


def test_expressions_are_true_of_exactly_one(clips: list[PaintedClip]) -> None:
    told = {family: 0 for family in FAMILIES}
    for number, clip in enumerate(clips):
        for target, family, text in describe_clip(clip.actors, np.random.default_rng(number), 6):
            assert said_of(text, clip.actors) == [target], (text, clip.actors)
            told[family] += 1
    assert min(told.values()) > CLIPS


def test_twins_are_told_by_motion(clips: list[PaintedClip]) -> None:
    rng = np.random.default_rng(0)
    twins = [(clip, k) for clip in clips for k, actor in enumerate(clip.actors) if actor.twin >= 0]
    for clip, k in twins:
        assert describe(clip.actors, k, "looks", rng, 0) is None
        assert any(describe(clip.actors, k, "motion", rng, wording) for wording in (0, 1) for _ in range(9))


def test_plurals_are_true_of_all_they_list(clips: list[PaintedClip]) -> None:
    found = 0
    for clip in clips:
        for group, text in describe_groups(clip.actors, np.random.default_rng(0)):
            found += 1
            assert len(group) > 1 and said_of(text, clip.actors) == list(group), (text, clip.actors)
    assert found > CLIPS


@pytest.mark.parametrize("dataset", list(writer.SETS))
def test_layouts_read_back_equal(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames, texts and masks through the reader of the real data set are those that were painted."""
    monkeypatch.setattr(writer, "CLIPS", SOME)
    monkeypatch.setattr(writer.prepare_refclips, "__kwdefaults__", {"clips": SOME})
    monkeypatch.setenv(writer.CACHE_VARIABLE, str(tmp_path))
    split = writer.SETS[dataset][0]
    samples = {sample.id: sample for sample in load_samples(dataset, split, medium="video")}
    assert len(samples) == SOME
    for clip, video in islice(writer.videos(dataset), SOME):
        sample = samples[f"{dataset}:{split}:{video.name}"]
        assert sample.cluster == f"{dataset}/{video.name}" and sample.dataset == dataset
        frames = sample.clip()
        assert len(frames) == len(clip.frames)
        assert all((frames.frame(t) == clip.frames[t]).all() for t in range(len(frames)))
        assert [one.text for one in sample.expressions] == [one.text for one in video.said]
        for targets, said in zip(sample.targets, video.said, strict=True):
            assert len(targets) == len(said.objects)
            for t in range(len(frames)):
                seen = np.max([target.mask(HEIGHT, WIDTH, t) for target in targets], axis=0)
                true = clip.masks[np.array(said.objects) - 1, t].any(0)
                void = video.ids[t] == VOID
                assert (seen[~void] == true[~void]).all() and (seen[void] == 255).all()
    folder = next(path for path in tmp_path.iterdir() if path.name.startswith(dataset))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    load_samples(dataset, split, medium="video")
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    # what was generated cannot be unpacked again
    next(folder.rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match=rf"'{folder}' is damaged \(.*\); delete it and run again"):
        load_samples(dataset, split, medium="video")


def test_what_the_data_sets_hold() -> None:
    """All four text files, two wordings, void pixels; expressions of several objects; frames five apart."""
    davis = [video for _, video in islice(writer.videos("refclips-davis"), 6)]
    assert all({one.file for one in video.said} == set(FILES) for video in davis)
    assert any((video.ids == VOID).any() for video in davis)
    mevis = [video for _, video in islice(writer.videos("refclips-mevis"), 6)]
    assert any(len(one.objects) > 1 for video in mevis for one in video.said)
    assert parse_datasets("refclips-ytvos") == [("refclips-ytvos", "heldout")]
    assert {split for name in writer.SETS for split in RefClips().splits(name, None).evaluation} == {
        "val",
        "valid_u",
        "heldout",
    }


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        writer.prepare_refclips("refclips-davis", tmp_path / "file")
