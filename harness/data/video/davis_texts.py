"""Ref-DAVIS' four text files, as the official converter understands them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.data.sample import DataError
from harness.data.video.lists import MOST_NUMBER, Listed, blamed, number
from harness.data.video.places import FILES

MOST_BYTES = 2**24  # of a file; they have some 15 KiB
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
MEND = "unpack davis_text_annotations.zip again"

Said = tuple[str, str]  # an object's id, as the files write it, and the text


def read_texts(folder: Path, videos: Sequence[str]) -> dict[str, tuple[Listed, ...]]:
    """The expressions of some videos in the order of the converted layout: of the k-th object those of the
    four files one behind the other. Objects are sorted by their id as a text, so "10" comes before "2".

    Raises:
        DataError: a file is missing or damaged, or says nothing of a video, or the files do not speak of the
            same objects.
    """
    files = {name: _read(folder / f"{name}.txt", encoding) for name, encoding in FILES.items()}
    return {video: _together(folder, video, files) for video in videos}


def _together(folder: Path, video: str, files: dict[str, dict[str, list[Said]]]) -> tuple[Listed, ...]:
    each = {name: sorted(held.get(video, []), key=lambda said: said[0]) for name, held in files.items()}
    objects = {name: [one for one, _ in said] for name, said in each.items()}
    first = next(iter(objects))
    for name, held in objects.items():
        if not held or held != objects[first] or len(set(held)) < len(held):
            raise DataError(
                f"'{folder / name}.txt' speaks of the objects {', '.join(held) or 'none'} of video {video}, "
                f"and '{first}.txt' of {', '.join(objects[first]) or 'none'}; {MEND}."
            )
    said = [of_file[place] for place in range(len(objects[first])) for of_file in each.values()]
    return tuple(Listed(key, text, {"exp": text, "obj_id": one}) for key, (one, text) in enumerate(said))


def _read(path: Path, encoding: str) -> dict[str, list[Said]]:
    """What a file says by video, in its order."""
    found: dict[str, list[Said]] = {}
    with blamed(path, MEND):
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size >> 20} MiB")
        # not splitlines: the second person's files hold characters that it takes for ends of lines
        for count, line in enumerate(path.read_text(encoding).split("\n"), 1):
            if not (words := line.split()):
                continue
            if len(words) < 3:
                raise ValueError(f'line {count} is not: video, object, "text"')
            number(words[1], f"the object of line {count}", MOST_NUMBER)
            text = " ".join(words[2:])[1:-1]  # without the quotes, whatever they are
            if not text.strip():
                raise ValueError(f"line {count} has no text")
            found.setdefault(MISSPELT.get(words[0], words[0]), []).append((words[1], text))
    return found
