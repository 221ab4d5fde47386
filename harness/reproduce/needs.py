"""What a spec needs: which files and data are here, which are not and where they come from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import data
from harness.plan import Plan, with_settings
from harness.reproduce import hub
from harness.reproduce.spec import File, Spec, Weights
from pruners.errors import UserError

Given = Mapping[str, "str | Path | None"]  # folders by the backbone's parameter


@dataclass(frozen=True)
class Need:
    """A file, or a data set.

    Attributes:
        what: as one says it.
        bytes: None where not known.
        place: where it lies; None where it is not here.
        source: where it comes from.
        unknown: why its size or digest is not known.
        fetched: whether --download can get it.
        wrong: why what lies there cannot be it.
        sha256: that it should have; None where not known.
    """

    what: str
    bytes: int | None
    place: Path | None
    source: str
    unknown: str = ""
    fetched: bool = False
    wrong: str = ""
    sha256: str | None = None

    @property
    def missing(self) -> bool:
        return self.place is None


@dataclass(frozen=True)
class Needs:
    """All of them.

    Attributes:
        free: bytes on the disk where the hub's cache lies.
    """

    weights: tuple[Need, ...]
    data: tuple[Need, ...]
    free: int

    @property
    def missing(self) -> list[Need]:
        return [one for one in (*self.weights, *self.data) if one.missing or one.wrong]


def look(spec: Spec, given: Given, folder: str | Path | None, cache: Path | None = None) -> Needs:
    """Look at what there is; nothing is fetched, and no file is opened.

    Args:
        given: folders that the user named, by the backbone's parameter.
        folder: of the data.
        cache: of the hub; the user's without.
    """
    weights = tuple(
        _need(one, file, given.get(one.parameter), cache) for one in spec.weights for file in one.files
    )
    return Needs(weights, tuple(_data(spec, folder)), _free(cache))


def _need(weights: Weights, file: File, given: str | Path | None, cache: Path | None) -> Need:
    if given is not None:
        there: Path | None = Path(given) / file.name
        there = there if there is not None and there.is_file() else None
        source = f"the folder {str(given)!r}, which --{weights.parameter} names"
    else:
        there = hub.cached(weights, file, cache) if weights.repository else None
        source = f"{weights.repository}@{weights.revision}" if weights.repository else weights.source
    wrong = ""
    if there is not None and not file.fits(size := there.stat().st_size):
        wrong = f"{str(there)!r} has {size} bytes, and the spec says {file.size}"
    return Need(
        f"{weights.parameter} {file.name}",
        file.size,
        there,
        source,
        file.unknown,
        given is None and bool(weights.repository),
        wrong,
        file.sha256,
    )


def _data(spec: Spec, folder: str | Path | None) -> list[Need]:
    """A line per data set: what of it is here, and of what is not the parts that have to be fetched."""
    found: list[Need] = []
    fetched: dict[str, Need] = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in spec.columns):
        try:
            wanted = ",".join(":".join(one) for one in spec.columns if one[0] == dataset)
            data.parse_datasets(wanted, folder, _medium(spec))
            here = Path(folder) if folder is not None else Path("generated here")
            found.append(Need(f"data {dataset}", None, here, "--data" if folder is not None else "itself"))
            continue
        except UserError as error:
            parts = [one for one in spec.data if dataset in one.serves]
            if not parts:
                found.append(Need(f"data {dataset}", None, None, str(error), "the spec names no source"))
        for part in parts:
            into = f"{part.source}, into {Path(folder or 'DATA') / part.into}"
            fetched.setdefault(part.name, Need(f"data {part.name}", part.size, None, into, part.unknown))
    return [*found, *fetched.values()]


def _medium(spec: Spec) -> Any:
    import backbones

    return backbones.one(spec.backbone).medium


def _free(cache: Path | None) -> int:
    from huggingface_hub import constants

    folder = Path(cache or constants.HF_HUB_CACHE).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def fetch(spec: Spec, given: Given, cache: Path | None = None, endpoint: str | None = None) -> list[Path]:
    """Fetch all of the weights that are on the hub and not here, each pinned and verified.

    Raises:
        UserError: as `hub.download`, or the disk has no room.
    """
    wanted = [
        (one, file)
        for one in spec.weights
        if one.repository and given.get(one.parameter) is None
        for file in one.files
        if (need := _need(one, file, None, cache)).missing or need.wrong
    ]
    if (size := sum(file.size or 0 for _, file in wanted)) > (free := _free(cache)):
        raise UserError(
            f"The disk of the hub's cache has {readable_size(free)} left, and {readable_size(size)} have to "
            f"be fetched; make room, or set HF_HOME to a folder where there is some."
        )
    for repository in dict.fromkeys(one for one, _ in wanted):
        hub.reach(repository, cache, endpoint)
    return [hub.download(one, file, cache, endpoint) for one, file in wanted]


def ready(spec: Spec, plan: Plan, given: Given, cache: Path | None = None) -> Plan:
    """The plan with the folders of its weights: those that the user named, else those of the hub's cache."""
    folders: dict[str, str] = {name: str(value) for name, value in given.items() if value is not None}
    for one in spec.weights:
        if one.parameter not in folders and one.repository:
            place = hub.cached(one, one.files[0], cache)
            if place is not None:
                folders[one.parameter] = str(place.parent)
    return replace(plan, backbones=with_settings(plan.backbones, **folders)) if folders else plan


def refuse(needs: Needs, download: bool) -> None:
    """Raise UserError if something is not here: what, how large, and how it gets here."""
    if not needs.missing:
        return
    told_of: Sequence[str] = [
        one.wrong or f"{one.what} ({readable_size(one.bytes)}) from {one.source}" for one in needs.missing
    ]
    more = "" if download or not any(one.fetched for one in needs.missing) else "; --download fetches weights"
    raise UserError(f"Not here: {'; '.join(told_of)}{more}. --dry-run lists all that is needed.")


def readable_size(size: int | None) -> str:
    """Bytes as one reads them."""
    if size is None:
        return "size not known"
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= of:
            return f"{size / of:.2f} {unit}"
    return f"{size} B"
