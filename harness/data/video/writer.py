"""Writes clips from arrays in the official layouts, which the readers beside it and others' tools take.

    cat = Video("cat", frames, ids, said=(
        Said("the cat", (1,), "Davis17_annot1"), Said("a black cat", (1,), "Davis17_annot1_full_video"), ...
    ))
    write_davis(root, [cat])                # raw DAVIS with its four text files
    write_youtube(root, [cat], "train")     # palette ids, frames 00000, 00005, ...
    write_youtube(root, [dog], "valid", test=[cow])  # no masks; the valid list also names the test videos
    write_mevis(root, [cat], "valid_u")     # run lengths in mask_dict.json

`root` is what `--data` names: each makes its own folder below it (`ref-davis`, `ref-youtube-vos`, `mevis`)
and returns that. A split that is written again is replaced as far as its lists go. Ref-DAVIS wants of every
object exactly one text of each of the four FILES; the other two take any texts, MeViS also of several objects
or of none, and leave `file` alone. `convert_davis` of `harness.data.video.davis` makes of the raw layout what
other people's tools read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbones.parts.clips import run_lengths
from harness.data.sample import DataError
from harness.data.video.painted import VOID, palette
from harness.data.video.places import FILES, IDS, JPEGS, MASKS, META, TEXTS

Encoder = Callable[[NDArray[np.uint8]], bytes]
STEP = 5  # between the frame names of Refer-YouTube-VOS


@dataclass(frozen=True)
class Said:
    """One expression.

    Attributes:
        objects: ids in the clip's id maps of what it means.
        file: of Ref-DAVIS alone, which of its text FILES it stands in.
    """

    text: str
    objects: tuple[int, ...]
    file: str = ""


@dataclass(frozen=True)
class Video:
    """One clip with what is said about it.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        ids: (T, H, W) uint8: 0 background, 1 to 254 objects, 255 void (of Ref-DAVIS alone).
        said: in the order of the expression ids, which the lists count from 0.
        categories: of objects, by their id; "object" of those that it does not name.
    """

    name: str
    frames: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    said: tuple[Said, ...]
    categories: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[:3] != self.ids.shape or self.frames.shape[3] != 3:
            raise DataError(
                f"The clip {self.name!r} has frames of shape {self.frames.shape} and ids of shape "
                f"{self.ids.shape}; give (T, H, W, 3) and (T, H, W)."
            )
        if self.frames.dtype != np.uint8 or self.ids.dtype != np.uint8:
            raise DataError(f"The clip {self.name!r} has frames or ids that are not uint8; convert them.")

    @property
    def objects(self) -> list[int]:
        """Ids of all objects, whether seen or only spoken of."""
        seen = {int(one) for one in np.unique(self.ids)} - {0, VOID}
        return sorted(seen | {one for said in self.said for one in said.objects})


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """A frame as the official data have it. Bytes may differ between versions of the library; where that
    matters give another encoder (readers tell formats by the content, whatever the name ends with)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, subsampling=0)
    return file.getvalue()


def write_davis(root: Path, clips: Iterable[Video], split: str = "val", encode: Encoder = jpeg) -> Path:
    """Ref-DAVIS-17 as it is downloaded: DAVIS with unsupervised annotations, and the text files.

    Args:
        split: val or train; the text files hold both.

    Raises:
        DataError: an object has not one text of each file.
    """
    folder, clips = root / "ref-davis", list(clips)
    davis, texts = folder / "DAVIS", folder / TEXTS
    lines: dict[str, list[str]] = {name: [] for name in FILES}
    for clip in clips:
        _write_frames(davis / JPEGS / "480p" / clip.name, clip, encode)
        _write_ids(davis / IDS / "480p" / clip.name, clip)
        for number in clip.objects:
            for name in FILES:
                lines[name].append(f'{clip.name} {number} "{_only(clip, number, name)}"\n')
    _write(davis / "ImageSets" / "2017" / f"{split}.txt", "".join(f"{clip.name}\n" for clip in clips))
    named = {clip.name for clip in clips}
    texts.mkdir(parents=True, exist_ok=True)
    for name, encoding in FILES.items():
        path = texts / f"{name}.txt"
        held = path.read_text(encoding).split("\n") if path.is_file() else []
        kept = [f"{line}\n" for line in held if line and line.split(" ")[0] not in named]
        path.write_text("".join([*kept, *lines[name]]), encoding=encoding)
    semantics = davis / "davis_semantics.json"
    known = json.loads(semantics.read_text()) if semantics.is_file() else {}
    _write(semantics, json.dumps(known | {clip.name: _categories(clip) for clip in clips}))
    return folder


def _only(clip: Video, number: int, file: str) -> str:
    texts = [said.text for said in clip.said if said.objects == (number,) and said.file == file]
    if len(texts) != 1 or not texts[0].strip() or set(texts[0]) & set("\r\n"):
        raise DataError(
            f"Object {number} of the clip {clip.name!r} has {len(texts)} texts in {file}; Ref-DAVIS wants "
            f"one line of each of {', '.join(FILES)}."
        )
    return texts[0]


def write_youtube(
    root: Path,
    clips: Sequence[Video],
    split: str = "train",
    test: Sequence[Video] = (),
    masks: bool | None = None,
    encode: Encoder = jpeg,
) -> Path:
    """Refer-YouTube-VOS.

    Args:
        split: train or valid.
        test: of valid, what its list names besides, and the list of test alone.
        masks: whether object ids and id maps are written; by default of train alone, as officially.

    Raises:
        DataError: an expression means more or fewer than one object.
    """
    folder = root / "ref-youtube-vos"
    public = split == "train" if masks is None else masks
    lists = {split: [*clips, *test]} | ({"test": list(test)} if test else {})
    for name, held in lists.items():
        listed = {clip.name: _listed(clip, STEP, _one_object if public else _nothing) for clip in held}
        _write(folder / META / name / f"{META}.json", json.dumps({"videos": listed}))
    for name, held in ({split: list(clips)} | ({"test": list(test)} if test else {})).items():
        for clip in held:
            _write_frames(folder / name / JPEGS / clip.name, clip, encode, STEP)
            if public and name == split:
                _write_ids(folder / name / MASKS / clip.name, clip, STEP)
    if public:
        described = {clip.name: {"objects": _described(clip, STEP)} for clip in clips}
        _write(folder / split / "meta.json", json.dumps({"videos": described}))
    return folder


def write_mevis(root: Path, clips: Sequence[Video], split: str = "valid_u", encode: Encoder = jpeg) -> Path:
    """MeViS.

    Args:
        split: valid_u or train, with masks; valid, without.
    """
    folder, public = root / "mevis", split != "valid"
    masks: dict[str, list[dict[str, Any] | None]] = {}
    listed: dict[str, dict[str, Any]] = {}
    for clip in clips:
        _write_frames(folder / split / JPEGS / clip.name, clip, encode)
        numbers = {one: len(masks) + place for place, one in enumerate(clip.objects)}
        masks |= {str(number): _runs(clip.ids == one) for one, number in numbers.items()}

        def more(said: Said, numbers: Mapping[int, int] = numbers) -> dict[str, Any]:
            return {"obj_id": list(said.objects), "anno_id": [numbers[one] for one in said.objects]}

        listed[clip.name] = {"vid_id": len(listed)} | _listed(clip, 1, more if public else _nothing)
    _write(folder / split / f"{META}.json", json.dumps({"videos": listed}))
    if public:
        _write(folder / split / "mask_dict.json", json.dumps(masks))
    return folder


def _runs(mask: NDArray[np.bool_]) -> list[dict[str, Any] | None]:
    size = list(mask.shape[1:])
    return [{"size": size, "counts": run_lengths(one)} if one.any() else None for one in mask]


def _listed(clip: Video, step: int, more: Callable[[Said], dict[str, Any]]) -> dict[str, Any]:
    """A video's entry in a list of expressions."""
    said = {str(place): {"exp": one.text} | more(one) for place, one in enumerate(clip.said)}
    return {"expressions": said, "frames": [_name(place, step) for place in range(len(clip.frames))]}


def _nothing(said: Said) -> dict[str, Any]:
    return {}


def _one_object(said: Said) -> dict[str, Any]:
    if len(said.objects) != 1:
        raise DataError(f"'{said.text}' means {len(said.objects)} objects; Refer-YouTube-VOS wants one.")
    return {"obj_id": str(said.objects[0])}


def _described(clip: Video, step: int) -> dict[str, Any]:
    """Objects as YouTube-VOS has them: category, and the frames where they are seen."""
    return {
        number: {
            "category": category,
            "frames": [_name(place, step) for place in _seen(clip, int(number))],
        }
        for number, category in _categories(clip).items()
    }


def _seen(clip: Video, number: int) -> list[int]:
    return [place for place, ids in enumerate(clip.ids) if (ids == number).any()]


def _categories(clip: Video) -> dict[str, str]:
    return {str(number): clip.categories.get(number, "object") for number in clip.objects}


def _name(place: int, step: int) -> str:
    return f"{place * step:05d}"


def _write_frames(folder: Path, clip: Video, encode: Encoder, step: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, frame in enumerate(clip.frames):
        (folder / f"{_name(place, step)}.jpg").write_bytes(encode(frame))


def _write_ids(folder: Path, clip: Video, step: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, ids in enumerate(clip.ids):
        painted = Image.fromarray(ids, "P")
        painted.putpalette(palette())
        painted.save(folder / f"{_name(place, step)}.png")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
