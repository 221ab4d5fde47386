"""The doctor: looks at this machine, a data folder and backbones' files, one line per finding with what mends
it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import backbones
from backbones import Finding, Settings, versions
from backbones.parts.json_files import read_json
from harness import data, doctor_clips
from harness.data import own, reasonseg
from harness.data.refer import GENERALISED, bases, expected, refer_names, splits
from harness.data.refshapes.writer import MANIFEST, cache_folder
from harness.data.refshapes.writer import SPLITS as REFSHAPES
from harness.data.sample import DataError, Sample
from harness.data.video import known as clips
from harness.engine import threads
from harness.plan import Plan
from harness.progress import each
from pruners.errors import nearest

Counts = tuple[int, int | None, int]  # images, refs (None: not published) and expressions
# the published splits that `--datasets all` runs: RefCOCO and RefCOCO+ by unc, RefCOCOg by umd
OFFICIAL: dict[str, dict[str, Counts]] = {
    "refcoco": {"val": (1500, 3811, 10834), "testA": (750, 1975, 5657), "testB": (750, 1810, 5095)},
    "refcoco+": {"val": (1500, 3805, 10758), "testA": (750, 1975, 5726), "testB": (750, 1798, 4889)},
    "refcocog": {"val": (1300, 2573, 4896), "test": (2600, 5023, 9602)},
}
GREFCOCO: dict[str, Counts] = {
    "val": (1500, None, 14229),
    "testA": (750, None, 19200),
    "testB": (750, None, 16063),
}
REASONSEG = {"val": 200, "test": 779, "train": 239}  # images, each with one text
REFS_FILE, ZIP = "take the refs file of the release", "unpack the release's zip again"
# module -> extra of this project
OPTIONAL = {
    "mmcv": "mmcv",
    "flash_attn": "flash",
    "deepspeed": "distributed",
    "cv2": "reasonseg",
    "av": "video",
}
NAMED = 20  # lines of a list of expressions that are named one by one
FREE_BYTES = 500 * 2**20  # RefShapes needs about 300 MiB


def examine(folder: Path | None = None, asked: Sequence[Settings] = ()) -> Iterator[Finding]:
    """Look at everything that a run would read.

    Args:
        folder: data folder that holds Refer_Segm, refer_seg, reason_seg, video or own data.
        asked: backbones whose files are looked at, beside the one that runs by default.
    """
    yield from examine_machine()
    for settings in dict.fromkeys([*backbones.parse(",".join(Plan.backbones)), *asked]):
        yield from settings.examine()
    if folder is not None:
        yield from _data(folder)


# -- the machine


def examine_machine() -> Iterator[Finding]:
    """Packages, devices and the folder of generated data."""
    yield from _packages()
    yield from _devices()
    yield from _cache()


def _packages() -> Iterator[Finding]:
    fine = [f"python {sys.version.split()[0]}"]
    for one in versions.installed_versions():
        if one.tested:
            fine.append(f"{one.wanted.name} {one.found}")
        else:
            yield Finding("wrong" if one.found is None else "note", str(one))
    yield Finding("ok", ", ".join(fine))
    absent = [
        f"pip install 'groundprune[{extra}]'"
        for module, extra in OPTIONAL.items()
        if find_spec(module) is None
    ]
    if absent:
        yield Finding(
            "note", f"not installed and not needed unless an option asks for it: {', '.join(absent)}"
        )


def _devices() -> Iterator[Finding]:
    import torch

    there = threads.processors()
    busy = threads.others(there.allowed) or 0.0
    chosen = threads.choose(there=there, busy=busy)
    free = max(0.0, min(there.usable, there.cores - busy))
    yield Finding("ok", f"cpu: {there}, {free:.1f} free now; a run would get {chosen}")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield Finding(
                "wrong",
                f"torch {torch.__version__} does not see this machine's GPU; install a CUDA build and its "
                f"driver",
            )
        else:
            yield Finding("note", "no CUDA GPU: --device auto is the CPU here")


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Finding(
            "wrong", f"RefShapes cannot be written to '{folder}'; set GROUNDPRUNE_CACHE to a writable folder"
        )
        return
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield Finding(
            "wrong",
            f"'{folder}' has {free >> 20} MiB left; free {FREE_BYTES >> 20} MiB or set GROUNDPRUNE_CACHE",
        )
    else:
        yield Finding("ok", f"cache '{folder}': writable, {free >> 30} GiB left")


# -- data


def _data(root: Path) -> Iterator[Finding]:
    """Every evaluation split of a data folder."""
    for dataset in own.own_names(root):
        yield from _own(root, dataset)
    reasons = reasonseg.found(root) is not None
    if reasons:
        yield from _reasonseg(root)
    yield from doctor_clips.examine(root)
    try:
        held = refer_names(root)
    except DataError as error:
        if not own.own_names(root) and not reasons and not clips.names(root):
            yield Finding("wrong", f"{error}{own.hint(root)}{reasonseg.hint(root)}{clips.hint(root)}")
        return
    places = bases(root)
    there = " or ".join(f"'{base}'" for base in places)
    folders = sorted(
        path.name
        for base in places
        for path in base.iterdir()
        if path.is_dir() and path.name not in (*OFFICIAL, GENERALISED)
    )
    if not held and not own.own_names(root):
        yield Finding("wrong", f"{there} holds no data set; {expected(root, 'refcoco')}")
    published = bool(set(held) - REFSHAPES.keys())
    for dataset in OFFICIAL if published else []:
        if dataset not in held:
            text = f"{dataset} is not in {there}, and --datasets all needs it; {expected(root, dataset)}."
            near = nearest(dataset, folders)
            yield Finding("wrong" if near else "note", text + near)
    if published and GENERALISED not in held:
        yield Finding("note", f"{GENERALISED} is not in {there}; {expected(root, GENERALISED)}")
    if published and not reasons:
        yield Finding("note", f"{reasonseg.NAME} is not in '{root}'; {reasonseg.expected(root)}")
    for dataset in held:
        yield from _dataset(root, dataset)


def _dataset(root: Path, dataset: str) -> Iterator[Finding]:
    try:
        own, _ = splits(root, dataset)
    except DataError as error:
        yield Finding("wrong", str(error))
        return
    official = GREFCOCO if dataset == GENERALISED else OFFICIAL.get(dataset, {})
    if absent := [split for split in official if split not in own]:
        yield Finding(
            "wrong",
            f"{dataset} lacks the published splits {', '.join(absent)}; {REFS_FILE}",
        )
    if dataset == GENERALISED:
        yield Finding(
            "note",
            f"{dataset} asks for what is not there, and a forced answer always holds a [SEG]: run it with "
            f"--answers generated",
        )
    for split in own:
        try:
            samples = data.load_refer(root, dataset, split)
            yield from _split(samples, official.get(split), _prints(root).get(f"{dataset}:{split}"))
        except DataError as error:
            yield Finding("wrong", str(error))


def _reasonseg(root: Path) -> Iterator[Finding]:
    evaluation, others = reasonseg.ReasonSeg().splits(reasonseg.NAME, root)
    for split in (*evaluation, *others):
        try:
            samples = data.load_samples(reasonseg.NAME, split, root)
        except DataError as error:
            yield Finding("wrong", str(error))
            continue
        count = REASONSEG[split]
        yield from _split(samples, (count, count, count), None, ZIP)
    if "val" in evaluation:
        yield Finding(
            "note", f"{reasonseg.NAME}:val was trained on by LISA's v1 models; compare them on its test split"
        )


def _own(root: Path, dataset: str) -> Iterator[Finding]:
    """Every line of an own data set that cannot be used; its splits, if all can."""
    try:
        told = list(own.faults(root, dataset))
        yield from (Finding("wrong", sentence) for sentence in told[:NAMED])
        if len(told) > NAMED:
            yield Finding("wrong", f"{dataset}: {len(told) - NAMED} more lines cannot be used")
        if not told:
            for split in (part for parts in own.OwnData().splits(dataset, root) for part in parts):
                yield from _split(data.load_samples(dataset, split, root), None, None)
    except DataError as error:
        yield Finding("wrong", str(error))


def _prints(root: Path) -> dict[str, str]:
    """Fingerprints that generated data were written with; none for downloaded data."""
    if not (root / MANIFEST).is_file():
        return {}
    found = read_json(root / MANIFEST, "delete the folder, and the next run generates it again").get(
        "fingerprints", {}
    )
    return found if isinstance(found, dict) else {}


def _split(
    samples: list[Sample], official: Counts | None, known: str | None, mend: str = REFS_FILE
) -> Iterator[Finding]:
    """Counts against the published ones, and every image and mask read once.

    Args:
        official: the published counts.
        known: the fingerprint that generated data were written with.
        mend: what to do where the counts differ.
    """
    name = f"{samples[0].dataset}:{samples[0].split}"
    spoken = [expression for sample in samples for expression in sample.expressions]
    counts = (len(samples), len({expression.ref_id for expression in spoken}), len(spoken))
    told = "{} images, {} refs, {} expressions".format(*counts)
    fine = True
    if official is not None and any(
        wanted not in (None, count) for wanted, count in zip(official, counts, strict=True)
    ):
        kinds = zip(official, ("images", "refs", "expressions"), strict=True)
        whole = ", ".join(f"{wanted} {kind}" for wanted, kind in kinds if wanted is not None)
        fine = False
        yield Finding("wrong", f"{name} has {told}, and the published split {whole}; {mend}")
    broken = []
    for sample in each(samples, f"reading {name}"):
        try:
            sample.image()
            sample.masks()
        except DataError as error:
            broken.append(str(error))
    mark = data.fingerprint(samples)
    if broken:
        yield Finding(
            "wrong",
            f"{name}: {len(broken)} of {len(samples)} images or their masks cannot be used, first: "
            f"{broken[0]}",
        )
    elif known is not None and mark != known:
        yield Finding(
            "wrong",
            f"{name} has fingerprint {mark}, and was written with {known}; delete the folder to generate "
            f"it again",
        )
    elif fine:
        yield Finding("ok", f"{name}: {told}{' as published' if official else ''}, fingerprint {mark}")
