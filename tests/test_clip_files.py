"""Clips that a person has: folders of frames, and video files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbones.parts import clip_files
from backbones.parts.clip_files import read_clip
from pruners import UserError
from tests.films import FRAMES, folder_of, images, turned_right, video_of


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    frames = images()
    clip = read_clip(folder_of(tmp_path / "walk", frames))  # frame8, frame9, frame10
    assert (len(clip), clip.height, clip.width) == (FRAMES, 24, 32)
    assert all(np.array_equal(clip.frame(k), frames[k]) for k in range(FRAMES))


def test_frames_of_several_sizes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "walk", images())
    Image.new("RGB", (30, 24)).save(folder / "frame11.png")
    with pytest.raises(UserError, match=r"differ in size \(frame8.png 32x24 px, frame11.png 30x24 px\)"):
        read_clip(folder)
    (folder / "frame11.png").write_bytes((folder / "frame10.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"frame11.png' cannot be read"):
        read_clip(folder).frame(3)
    (folder / "frame11.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"frame11.png' cannot be read"):
        read_clip(folder)
    (folder / "frame11.png").unlink()
    (folder / "frame11.png").symlink_to("nowhere.png")  # passed over, it would make a shorter clip
    with pytest.raises(UserError, match=r"frame11.png' is gone"):
        read_clip(folder)


def test_a_video_gives_the_frames_in_any_order(tmp_path: Path) -> None:
    frames = images(9)
    clip = read_clip(video_of(tmp_path / "walk.mp4", frames, crf="4"), window=4)
    assert (len(clip), clip.height, clip.width) == (9, 24, 32)
    for k in (0, 4, 4, 8, 1, 2, 3, 7):
        gaps = [np.abs(clip.frame(k).astype(int) - frame).mean() for frame in frames]
        assert int(np.argmin(gaps)) == k and gaps[k] < 6
    assert clip.windows() == [range(4), range(4, 8), range(8, 9)]


def test_a_frame_that_is_given_away_can_be_written_on(tmp_path: Path) -> None:
    clip = read_clip(video_of(tmp_path / "walk.mp4", images(), crf="4"))
    before = clip.frame(2).copy()
    clip.frame(2)[:] = 0
    assert np.array_equal(clip.frame(2), before)


def test_one_frame_of_a_video_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = read_clip(video_of(tmp_path / "walk.mp4", images(9)))
    read: list[int] = []
    real = clip_files._decoded

    def counting(path: Path) -> Any:
        for number, frame in enumerate(real(path)):
            read.append(number)
            yield frame

    monkeypatch.setattr(clip_files, "_decoded", counting)
    for k in range(9):
        clip.frame(k)
    assert read == list(range(9))  # once through
    clip.frame(3)
    assert read == [*range(9), *range(4)]


def test_a_video_is_turned_as_it_says(tmp_path: Path) -> None:
    frames = images()
    path = video_of(tmp_path / "upright.mp4", frames, crf="4")
    turned_right(path)
    clip = read_clip(path)
    assert (clip.height, clip.width) == (32, 24)
    assert np.abs(clip.frame(1).astype(int) - np.rot90(frames[1], -1)).mean() < 6
    assert np.abs(clip.frame(1).astype(int) - np.rot90(frames[1], 1)).mean() > 20


def test_odd_sizes_stay_what_they_are(tmp_path: Path) -> None:
    frames = images(3, 23, 31)
    clip = read_clip(video_of(tmp_path / "odd.mkv", frames, "ffv1", "bgr0"))
    assert np.array_equal(clip.frame(2), frames[2])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        (b"no video at all", "cannot be read"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "cannot be read"),
        (None, "cannot be read"),  # half of one
    ],
)
def test_what_is_no_video_is_one_sentence(content: bytes | None, told: str, tmp_path: Path) -> None:
    whole = video_of(tmp_path / "whole.mp4", images()).read_bytes()
    path = tmp_path / "clip.mp4"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=told) as caught:
        read_clip(path)
    assert "clip.mp4" in str(caught.value) and "give a folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_video_that_is_cut_short_while_it_is_read_is_told_so(tmp_path: Path) -> None:
    path = video_of(tmp_path / "walk.mkv", images(9), "ffv1", "bgr0")
    clip = read_clip(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"become shorter|cannot be read"):
        clip.frame(8)


def test_sound_alone_and_long_clips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(UserError, match="holds no video"):
        read_clip(tmp_path / "sound.wav")
    path = video_of(tmp_path / "walk.mp4", images())
    monkeypatch.setattr(clip_files, "MOST_FRAMES", 4)
    for long in (path, folder_of(tmp_path / "walk", images())):
        with pytest.raises(UserError, match="more than 4 frames"):
            read_clip(long)


def test_without_the_package_a_video_names_the_extra_and_a_folder_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "walk.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(
        UserError, match=r"pip install 'groundprune\[video\]'.*folder of its frames.*needs none"
    ):
        read_clip(tmp_path / "walk.mp4")
    assert len(read_clip(folder_of(tmp_path / "walk", images()))) == FRAMES
