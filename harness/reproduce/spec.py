"""A published table as one TOML file: what it is of, the plan that computes it here, what that needs, the
numbers as printed, and when ours count as the same.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.plan import Plan
from harness.reproduce.numbers import AVERAGE, Number, Row, read_rows
from harness.reproduce.reading import read, wrong
from harness.toml_files import load_toml
from pruners.errors import UserError

REVISION = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
GB = 10**9
LISTED = 0.005  # of a GB: what a hub's page rounds sizes to
MOST_DRAWS = 20


@dataclass(frozen=True)
class Printed:
    """How a table prints one metric, or one cost.

    Attributes:
        unit: of its numbers.
        column: of the CSV, where the table is of one split; empty where columns are named by data set and
            split.
        incomparable: why ours cannot be held against the printed number, as a time on a GPU that nobody
            named; empty where it can.
    """

    unit: str
    column: str = ""
    incomparable: str = ""


@dataclass(frozen=True)
class Source:
    """Where a table is from.

    Attributes:
        title: authors, paper, year, identifier.
        where: which table of it, or which page.
        seen: whether whoever wrote the spec saw the numbers there; false of second-hand ones.
        note: what else to know.
    """

    title: str
    where: str
    seen: bool
    note: str = ""


@dataclass(frozen=True)
class File:
    """A file to fetch.

    Attributes:
        name: in its repository or folder.
        bytes: exactly; None where not known.
        gb: as a page lists it, rounded to hundredths of 10^9 bytes, where the bytes are not known.
        sha256: None where not known.
        unknown: why size or digest is not known; has to be there where one is not.
    """

    name: str
    bytes: int | None = None
    gb: float | None = None
    sha256: str | None = None
    unknown: str = ""

    @property
    def size(self) -> int | None:
        """Bytes, as well as they are known."""
        if self.bytes is not None:
            return self.bytes
        return None if self.gb is None else round(self.gb * GB)

    def fits(self, found: int) -> bool:
        """Whether a file of so many bytes could be it."""
        if self.bytes is not None:
            return found == self.bytes
        return self.gb is None or abs(found - self.gb * GB) <= LISTED * GB * 1.01


@dataclass(frozen=True)
class Weights:
    """Files of one parameter of the backbone.

    Attributes:
        parameter: that names their folder: "checkpoint" or "clip".
        files: all that reading needs.
        repository: on the hub; empty where they are not there.
        revision: 40 hex digits.
        source: where to get them from by hand, of what is not on the hub.
        licence: as the page says.
    """

    parameter: Literal["checkpoint", "clip"]
    files: tuple[File, ...]
    repository: str = ""
    revision: str = ""
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Download:
    """A part of the data that is fetched by hand.

    Attributes:
        name: what it is.
        source: where from.
        into: the folder below --data.
        serves: the data sets that need it.
        bytes, gb, sha256, unknown: as of a `File`.
    """

    name: str
    source: str
    into: str
    serves: tuple[str, ...]
    bytes: int | None = None
    gb: float | None = None
    sha256: str | None = None
    unknown: str = ""

    @property
    def size(self) -> int | None:
        """Bytes, as well as they are known."""
        return File(self.name, self.bytes, self.gb).size


@dataclass(frozen=True)
class Split:
    """What a whole split holds; None where that is not known, and `unknown` says why.

    Attributes:
        name: `refcoco:val`.
        images: or clips, that the printed numbers are of.
        fingerprint: of these images and their masks, as the doctor tells it.
    """

    name: str
    images: int
    refs: int | None = None
    sentences: int | None = None
    fingerprint: str | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Proof:
    """How the set-up is proven before anything else runs.

    Attributes:
        splits: on which the unpruned row is asked; the plan's first without.
        images: of each, drawn from a seed; 0 for all.
        draws: seeds of the protocol with which they are asked, of a protocol that draws.
        method: the printed row that it is compared with, where several are unpruned.
    """

    splits: tuple[str, ...] = ()
    images: int = 200
    draws: int = 3
    method: str = ""


@dataclass(frozen=True)
class Band:
    """What may differ between two honest runs, beside rounding of the print.

    Attributes:
        draw: "other" if the printed numbers come from draws of the protocol that nobody knows, "same" if from
            those of the plan's own seed.
        tolerance: of everything that no record shows (another GPU, other kernels), in units of the table.
        why: the reason of the tolerance; has to be there where it is not 0.
        text_tokens: least and most text tokens of the conversations that costs were counted on; two numbers.
    """

    draw: Literal["other", "same"] = "other"
    tolerance: float = 0.0
    why: str = ""
    text_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Content:
    """The file as it is written."""

    title: str
    numbers: str
    backbone: str
    protocol: str
    source: Source
    metrics: Mapping[str, Printed]
    plan: Mapping[str, Any]
    answers: Literal["forced", "generated"] = "forced"
    shapes: str = ""
    pending: str = ""
    beside: bool = True
    weights: tuple[Weights, ...] = ()
    data: tuple[Download, ...] = ()
    splits: tuple[Split, ...] = ()
    proof: Proof = field(default_factory=Proof)
    band: Band = field(default_factory=Band)
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A published table.

    Attributes:
        name: of its file.
        path: the file.
        title: in a sentence.
        numbers: the CSV with its numbers, beside it.
        backbone, protocol: that its numbers belong to.
        metrics: names of metrics, or of cost columns, that it prints.
        plan: computes them here.
        source: where it is from.
        shapes: the backbone whose numbers alone project its costs; empty where there is none.
        pending: what is not there yet, so that nothing stands beside it; empty of a table that is in use.
        answers: "forced" or "generated", as they were when its numbers were made.
        beside: whether its numbers stand beside a leaderboard's.
        weights, data: what has to be fetched.
        splits: what the plan's splits hold.
        proof, band: as there.
        causes: why a set-up may be wrong, the likeliest first.
        notes: what to know of single numbers.
    """

    name: str
    path: Path
    title: str
    numbers: str
    backbone: str
    protocol: str
    metrics: Mapping[str, Printed]
    plan: Plan
    source: Source
    shapes: str = ""
    pending: str = ""
    answers: str = "forced"
    beside: bool = True
    weights: tuple[Weights, ...] = ()
    data: tuple[Download, ...] = ()
    splits: tuple[Split, ...] = ()
    proof: Proof = field(default_factory=Proof)
    band: Band = field(default_factory=Band)
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of its CSV."""
        return Path(self.numbers).stem

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(data set, split) of every split of the plan."""
        return tuple((one.partition(":")[0], one.partition(":")[2]) for one in self.plan.datasets.split(","))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The printed rows, numbers as printed."""
        return read_rows(self.path.parent / self.numbers, str(self.path))

    def column(self, metric: str, split: tuple[str, str]) -> str:
        """The CSV's column of a split's numbers; empty where there is none."""
        named = self.metrics[metric].column
        if not named:
            return " ".join(split)
        return named if self.plan.datasets == ":".join(split) else ""

    def cells(self, metric: str) -> list[tuple[Row, tuple[str, str] | None, Number]]:
        """Every printed number of a metric with its row and its split; None for the mean of all splits."""
        named = self.metrics[metric].column
        places = {self.column(metric, split): split for split in self.columns}
        columns: dict[str, tuple[str, str] | None] = dict(places)
        if not named and len(places) > 1:
            columns[AVERAGE] = None
        return [
            (row, split, row.numbers[column])
            for row in self.rows
            for column, split in columns.items()
            if column in row.numbers
        ]

    def split(self, name: str) -> Split | None:
        """What is expected of a split."""
        return next((one for one in self.splits if one.name == name), None)


def read_spec(path: Path) -> Spec:
    """A spec from its file.

    Raises:
        UserError: it cannot be read, is no TOML, or says something that makes no sense; names the key.
    """
    file = str(path)
    try:
        content = load_toml(path)
    except OSError as error:
        raise UserError(f"The spec {file!r} cannot be read ({error.strerror}); give a TOML file.") from error
    except ValueError as error:
        raise UserError(f"The spec {file!r} is no TOML ({error}).") from error
    told = read(_Content, content, file)
    plan = _plan(told, file)
    facts = {name: getattr(told, name) for name in _Content.__dataclass_fields__}
    spec = Spec(**facts | {"name": path.stem, "path": path, "plan": plan})
    _check(spec, file)
    return spec


def _plan(told: _Content, file: str) -> Plan:
    fixed = {
        "backbones": [told.backbone],
        "protocol": told.protocol,
        "answers": [told.answers],
        "limit": 0,
    }
    for name in fixed.keys() - {"limit"}:
        if name in told.plan:
            raise wrong(file, f"plan.{name}", "is said once for the whole spec; leave it out here")
    try:
        return Plan.from_json(fixed | dict(told.plan))
    except UserError as error:
        raise wrong(file, "plan", f"is no plan: {error}", "") from error


def _check(spec: Spec, file: str) -> None:
    """What types alone do not say."""
    if not spec.metrics:
        raise wrong(file, "metrics", "is empty; name what the table prints, [metrics.ciou] with its unit")
    for dataset, named in spec.columns:
        if not named or not dataset:
            raise wrong(
                file,
                "plan.datasets",
                f"has {dataset!r} without a split; name them, refcoco:val,refcoco:testA",
            )
    for number, one in enumerate(spec.weights):
        key = f"weights[{number}]"
        if bool(one.repository) == bool(one.source):
            raise wrong(file, key, "needs a hub repository with its revision, or a source for a person")
        if one.repository and not REVISION.fullmatch(one.revision):
            raise wrong(
                file, f"{key}.revision", f"is {one.revision!r}, and has to be a commit's 40 hex digits"
            )
        if not one.files:
            raise wrong(file, f"{key}.files", "is empty; name the files that reading needs")
        for place, held in enumerate(one.files):
            _check_known(held, file, f"{key}.files[{place}]")
    for number, part in enumerate(spec.data):
        _check_known(part, file, f"data[{number}]")
    for number, split in enumerate(spec.splits):
        if split.name not in map(":".join, spec.columns):
            raise wrong(file, f"splits[{number}].name", f"is {split.name!r}, which the plan does not run")
        if split.images < 1:
            raise wrong(file, f"splits[{number}].images", f"is {split.images}, and has to be 1 or more")
        if None in (split.refs, split.sentences, split.fingerprint) and not split.unknown:
            raise wrong(file, f"splits[{number}]", "does not know all; say in 'unknown' why")
    for name in spec.proof.splits:
        if name not in map(":".join, spec.columns):
            raise wrong(file, "proof.splits", f"has {name!r}, which the plan does not run")
    if spec.proof.images < 0 or not 1 <= spec.proof.draws <= MOST_DRAWS:
        raise wrong(file, "proof", f"asks for images of 0 or more and 1 to {MOST_DRAWS} draws")
    if spec.proof.method and spec.proof.method not in {row.method for row in spec.rows}:
        raise wrong(file, "proof.method", f"is {spec.proof.method!r}, which {spec.numbers!r} does not print")
    if spec.band.tolerance < 0 or (spec.band.tolerance > 0 and not spec.band.why):
        raise wrong(file, "band.tolerance", f"is {spec.band.tolerance:g}; give 0 or more, and 'why' with it")
    if len(spec.band.text_tokens) not in (0, 2):
        raise wrong(file, "band.text_tokens", "has to be two numbers, the least and the most")
    for name in spec.metrics:
        if not spec.cells(name):
            raise wrong(
                file,
                f"metrics.{name}",
                f"has no number in {spec.numbers!r}; a column is named by data set and split, or by 'column'",
            )


def _check_known(one: File | Download, file: str, key: str) -> None:
    if one.bytes is not None and one.gb is not None:
        raise wrong(file, key, "gives its size twice; give 'bytes' where they are known")
    if one.sha256 is not None and not DIGEST.fullmatch(one.sha256):
        raise wrong(file, f"{key}.sha256", f"is {one.sha256!r}, and has to be 64 hex digits")
    if (one.bytes is None or one.sha256 is None) and not one.unknown:
        raise wrong(file, key, "does not know its bytes or its sha256; say in 'unknown' why")
