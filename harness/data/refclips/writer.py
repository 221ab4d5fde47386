"""Writes RefClips in the official layouts of the three video data sets, whose readers read it back."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.refclips import language, scenes, splits
from harness.data.refclips.language import WORDINGS, describe_groups, describe_surely
from harness.data.refclips.scenes import HEIGHT, WIDTH, PaintedClip
from harness.data.refclips.splits import painted
from harness.data.refshapes import language as still_language
from harness.data.refshapes import scenes as still_scenes
from harness.data.refshapes.writer import CACHE_VARIABLE, cache_folder, png
from harness.data.sample import DataError
from harness.data.video.painted import VOID
from harness.data.video.places import FILES
from harness.data.video.writer import Said, Video, write_davis, write_mevis, write_youtube
from harness.data.video.youtube import is_held_out
from harness.progress import each

CLIPS = 20  # of a data set
MANIFEST = "refclips.json"
VOID_SIDE = 10  # pixels of a square that is void, in every third clip of refclips-davis
# families of the four text files of Ref-DAVIS: those from the first frame know no motion
FAMILIES = {False: ("looks", "place"), True: ("motion",)}
Teller = Callable[[PaintedClip, np.random.Generator], tuple[Said, ...] | None]


def version() -> str:
    """Generator version: 8 hex digits of the sources that decide what a clip is and how it is written."""
    digest = hashlib.sha256()
    for source in (
        still_scenes.__file__,
        still_language.__file__,
        scenes.__file__,
        language.__file__,
        splits.__file__,
        __file__,
    ):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:8]


def for_davis(clip: PaintedClip, rng: np.random.Generator) -> tuple[Said, ...] | None:
    """One expression of every object for each text file; None if an object has none for a file."""
    said = []
    for target in range(len(clip.actors)):
        for place, file in enumerate(FILES):
            families = FAMILIES[file.endswith("full_video")]
            text = describe_surely(clip.actors, target, families, rng, place // WORDINGS)
            if text is None:
                return None
            said.append(Said(text, (target + 1,), file))
    return tuple(said)


def for_mevis(clip: PaintedClip, rng: np.random.Generator) -> tuple[Said, ...] | None:
    """Up to four expressions of one object, mostly by motion, and one of several, if there is one."""
    said = _of_single(clip, rng, ("motion", "motion", "place"), most=4)
    groups = describe_groups(clip.actors, rng)
    if groups:
        objects, text = groups[int(rng.integers(len(groups)))]
        said.append(Said(text, tuple(one + 1 for one in objects)))
    return tuple(said) or None


def for_youtube(clip: PaintedClip, rng: np.random.Generator) -> tuple[Said, ...] | None:
    """Up to five expressions of one object, of all families in turn."""
    return tuple(_of_single(clip, rng, ("looks", "motion", "place"), most=5)) or None


def _of_single(
    clip: PaintedClip, rng: np.random.Generator, families: tuple[str, ...], most: int
) -> list[Said]:
    texts: dict[str, Said] = {}
    for turn in range(3 * most):
        target = int(rng.integers(len(clip.actors)))
        family, wording = families[turn % len(families)], int(rng.integers(WORDINGS))
        text = describe_surely(clip.actors, target, (family,), rng, wording)
        if text is not None and len(texts) < most:
            texts.setdefault(text, Said(text, (target + 1,)))
    return list(texts.values())


# of every data set: its split, the seeds' name, and who tells what is said of a clip
SETS: dict[str, tuple[str, str, Teller]] = {
    "refclips-davis": ("val", "davis", for_davis),
    "refclips-mevis": ("valid_u", "mevis", for_mevis),
    "refclips-ytvos": ("heldout", "youtube", for_youtube),
}


def videos(dataset: str) -> Iterator[tuple[PaintedClip, Video]]:
    """The clips of a data set without end, and what is written of each; the same on every machine."""
    _, name, tell = SETS[dataset]
    for index in count():
        clip = painted(name, index)
        rng = np.random.default_rng([index, sum(name.encode())])
        said = tell(clip, rng)
        # every clip shows each of its objects somewhere: an id that is in no picture is no object
        if said is None or not clip.masks.any((1, 2, 3)).all():
            continue
        ids = np.zeros(clip.masks.shape[1:], dtype=np.uint8)
        for k, mask in enumerate(clip.masks):
            ids[mask] = k + 1
        if name == "davis" and index % 3 == 0:
            _make_void(ids, rng)
        title = f"clip{index:03d}"
        if name == "youtube":  # the reader holds out one video of sixteen, by its name
            title = next(one for one in (f"{title}-{k}" for k in count()) if is_held_out(one))
        categories = {k + 1: a.shape for k, a in enumerate(clip.actors)}
        yield clip, Video(title, clip.frames, ids, said, categories)


def _make_void(ids: NDArray[np.uint8], rng: np.random.Generator) -> None:
    x, y = int(rng.integers(0, WIDTH - VOID_SIDE)), int(rng.integers(0, HEIGHT - VOID_SIDE))
    ids[:, y : y + VOID_SIDE, x : x + VOID_SIDE] = VOID


def prepare_refclips(dataset: str, cache_dir: str | Path | None = None, *, clips: int = CLIPS) -> Path:
    """Generate a data set unless it is there, and return the data folder that its reader takes.

    The folder appears at once and complete (written aside, then renamed), so a killed run leaves nothing half
    done and two processes may race.

    Args:
        dataset: a key of SETS.
        cache_dir: parent of the generated folders, default that of RefShapes.
        clips: how many.

    Raises:
        DataError: the cache cannot be written.
    """
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    root = cache / f"{dataset}-{version()}{f'-{clips}' if clips != CLIPS else ''}"
    if (root / MANIFEST).is_file():
        return root
    aside: Path | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=cache))
        aside.chmod(0o755)  # mkdtemp's 0700 would shut out the others of a shared cache
        _write(aside, dataset, clips)
        try:
            aside.rename(root)
        except OSError:  # another process was first: same generator, same bytes
            if root.exists() and not (root / MANIFEST).is_file():
                raise DataError(f"'{root}' is incomplete; delete it and run again.") from None
            if not root.exists():
                raise
    except OSError as error:
        raise DataError(
            f"{dataset} cannot be written to '{cache}' ({error.strerror or error}); set {CACHE_VARIABLE} "
            f"to a writable folder."
        ) from None
    finally:
        if aside is not None and aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
    return root


def _write(root: Path, dataset: str, clips: int) -> None:
    shown = each(islice(videos(dataset), clips), f"painting {dataset}", clips, "clips")
    held = [video for _, video in shown]
    match dataset:
        case "refclips-davis":
            write_davis(root, held, encode=png)
        case "refclips-mevis":
            write_mevis(root, held, encode=png)
        case _:
            write_youtube(root, held, encode=png)
    (root / MANIFEST).write_text(json.dumps({"generator": version(), "clips": clips}) + "\n", "utf-8")
