"""The doctor's look at referring video segmentation: counts against the published ones, and what is missing
or broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness import doctor, doctor_clips
from harness.data.video.writer import Said, Video, write_mevis, write_youtube
from tests.video_trees import clip, davis, mevis, youtube


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for write in (davis, youtube, mevis):
        write(tmp_path)
    return tmp_path


def told(root: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in doctor._data(root)]


def test_the_doctor_counts(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = {
        "ref-davis17": {"val": [doctor_clips.Counts(2, 4, 16)]},
        "ref-youtube-vos": {"valid": [doctor_clips.Counts(3, None, 9)]},
        "mevis": {
            "valid_u": [doctor_clips.Counts(2, None, 793), doctor_clips.Counts(2, None, 7)],
            "valid": [],
        },
    }
    monkeypatch.setattr(doctor_clips, "OFFICIAL", official)
    lines = told(tree)
    starts = [
        ("ok", "ref-davis17:val: 2 videos, 4 objects, 16 expressions as published, fingerprint "),
        (
            "note",
            "ref-youtube-vos:valid has 2 videos, 4 expressions, and the published split 3 videos, 9 e",
        ),
        ("ok", "ref-youtube-vos:valid: 2 videos, 4 expressions, fingerprint "),
        (
            "note",
            "ref-youtube-vos:valid has no masks here, so it gets no scores; python -m harness sub",
        ),
        ("ok", "ref-youtube-vos:heldout: 1 videos, 2 objects, 2 expressions, fingerprint "),
        ("note", "ref-youtube-vos:heldout is a part of train"),
        ("ok", "ref-youtube-vos:train: 2 videos, 4 objects, 4 expressions; frames were not looked at"),
        (
            "wrong",
            "mevis:valid_u has 2 videos, 6 expressions, and the published split 2 videos, 793 exp",
        ),
        ("ok", "mevis:valid: 1 videos, 2 expressions, fingerprint "),
        ("note", "mevis:valid has no masks here"),
    ]
    assert len(lines) == len(starts)
    for (level, what), (wanted, start) in zip(lines, starts, strict=True):
        assert level == wanted and what.startswith(start), what


def test_the_published_counts(tmp_path: Path) -> None:
    """30 videos of 61 objects; 202 of 834 expressions; MeViS' two versions by their expressions."""
    said = tuple(Said(f"text {k}", ()) for k in range(16))
    videos = [Video(f"v{k:02}", np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.uint8), said)
              for k in range(50)]  # fmt: skip
    for count, version in ((793, "v1"), (907, "v2")):
        last = Video("w", videos[0].frames, videos[0].ids, said[:1] * (count - 16 * 49))
        write_mevis(tmp_path, [*videos[:49], last])
        (line,) = [what for level, what in told(tmp_path) if level == "ok"]
        assert f"50 videos, {count} expressions as published in {version}, fingerprint" in line
    assert doctor_clips.OFFICIAL["ref-davis17"]["val"] == [(30, 61, 244)]
    assert doctor_clips.OFFICIAL["ref-youtube-vos"]["valid"] == [(202, None, 834)]
    assert doctor_clips.OFFICIAL["mevis"]["valid"] == [(140, None, 2236), (140, None, 2523)]


def test_the_doctor_names_what_is_missing_or_broken(tmp_path: Path) -> None:
    folder = davis(tmp_path)
    (folder / "DAVIS/JPEGImages/480p/bear/00001.jpg").write_bytes(b"no")
    lines = told(tmp_path)
    (wrong,) = [what for level, what in lines if level == "wrong"]
    assert "ref-davis17:val: 1 of 2 videos cannot be used, first: Image '" in wrong and "00001.jpg'" in wrong
    assert not [what for level, what in lines if level == "ok"]
    absent = [what.split(" ")[0] for level, what in lines if "is not in" in what]
    assert absent == ["ref-youtube-vos", "mevis"]
    (folder / "DAVIS/Annotations_unsupervised/480p/cat/00002.png").unlink()
    (wrong,) = [what for level, what in told(tmp_path) if level == "wrong"]
    assert (
        "1 of 6 masks of ref-davis17:val are missing, the first is '" in wrong and "cat/00002.png'" in wrong
    )


def test_the_doctor_tells_of_what_no_frame_shows(tmp_path: Path) -> None:
    write_youtube(tmp_path, [clip("v2", said=(Said("it", (7,)), Said("box", (1,))))], "train")
    lines = told(tmp_path)
    wrong = [what for level, what in lines if level == "wrong"]
    assert wrong == [
        "ref-youtube-vos:heldout: 1 expressions mean what no frame shows, first: expression 0 of "
        "ref-youtube-vos:heldout:v2"
    ]
    assert not [what for _, what in lines if "heldout" in what and "fingerprint" in what]


def test_a_damaged_list_is_one_finding(tree: Path) -> None:
    (tree / "mevis/valid_u/meta_expressions.json").write_text("{")
    wrong = [what for level, what in told(tree) if level == "wrong"]
    assert len(wrong) == 1 and "valid_u/meta_expressions.json' cannot be used" in wrong[0]
    assert len([what for level, what in told(tree) if level == "ok"]) == 5, "the others were looked at"
