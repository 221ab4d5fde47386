"""A board as a folder of pages: an index with filters, a page per method and per run; it opens from a folder,
below any address, and asks nothing of a network.

Every run is shown as its bundle would be (`harness.bundle`): a site holds no picture, no text of an
expression, no path and no name of a machine, whatever its run folders hold.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.bundle import SUFFIX, Bundle, pack, unpack
from harness.bundle.files import sealed
from harness.store import run_folder
from harness.store.journal import write_text
from pruners.base import UserError
from reports import export, frames, leaderboard
from reports.gather import Runs, gather
from reports.site import methods, views
from reports.tables import tables

FOLDER = Path(__file__).parent.parent / "web"
SOURCES = ("style.css", "site/site.css", "site/site.js")  # as one file of each kind below assets/
LEFT_OVER = ("index.html", "assets", "methods", "runs")  # what a site holds: written anew each time
# what a site of before may have left, and nothing else of the folder
OURS = re.compile(r"methods/[a-z0-9-]+\.html|runs/[0-9a-f]{8}-[0-9a-f]{6}\.(html|csv|json)")


@dataclass(frozen=True)
class Site:
    """What was written.

    Attributes:
        pages: HTML files.
        size: bytes of all files together.
        largest: the largest file, and its bytes.
    """

    out: Path
    pages: int
    size: int
    largest: tuple[str, int]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """In sentences."""
        name, most = self.largest
        told = [f"! {note}" for note in self.notes]
        told.append(
            f"{self.out / 'index.html'}: {self.pages} pages, {self.size / 1024:.0f} KiB together, the "
            f"largest {name} ({most / 1024:.0f} KiB)"
        )
        return "\n".join(told)


def render(paths: Sequence[Path], out: Path) -> Site:
    """Write the site of runs and bundles; the same numbers give the same bytes.

    Args:
        paths: run folders, bundles, and folders that hold bundles.
        out: folder to write to; a site that is there is replaced.

    Raises:
        UserError: there is nothing to show, a path is none of these, or `out` cannot be written.
    """
    _check_own(out)
    bundles, notes = _bundles(paths)
    with tempfile.TemporaryDirectory(prefix="groundprune-site-") as place:
        folders = [unpack(one, Path(place) / name) for name, one in bundles.items()]
        whole = gather(folders)
        files = _files(whole, list(bundles.items()), folders, notes)
    written = _written(files, out)
    pages = sum(name.endswith(".html") for name in written)
    largest = max(written.items(), key=lambda pair: pair[1])
    return Site(out, pages, sum(written.values()), largest, tuple(notes))


def _bundles(paths: Sequence[Path]) -> tuple[dict[str, Bundle], list[str]]:
    """Every run once, by the name of its page, and which were given twice."""
    found: dict[str, Bundle] = {}
    notes = []
    for path in paths:
        for one in _opened(path):
            if one.name in found:
                notes.append(f"Run {one.name} is given twice and shown once.")
            found.setdefault(one.name, one)
    return found, notes


def _opened(path: Path) -> Iterator[Bundle]:
    """The bundles that a path means; those of files are verified as a board's."""
    from harness.bundle.accept import verified

    if path.is_file():
        yield verified(path)
    elif (path / run_folder.RUN).is_file():
        yield sealed(pack(path))[0]
    elif path.is_dir() and (held := sorted(path.rglob(f"*{SUFFIX}"))):
        yield from map(verified, held)
    else:
        what = "holds no run and no bundle" if path.is_dir() else "is not there"
        raise UserError(
            f"{str(path)!r} {what}; give folders of runs (results/runs/<id>), bundles, or a folder of "
            f"bundles."
        )


def _files(
    whole: Runs, bundles: Sequence[tuple[str, Bundle]], folders: Sequence[Path], notes: Sequence[str]
) -> dict[str, str]:
    """All files of the site by their path in it."""
    pages = _pages()
    found = tables(whole)
    names = [name for name, _ in bundles]
    facts = [bundle.facts for _, bundle in bundles]
    board = views.board(whole, found, names)
    files = {
        "assets/site.css": "\n".join(_source(name) for name in SOURCES if name.endswith(".css")),
        "assets/site.js": "\n".join(_source(name) for name in SOURCES if name.endswith(".js")),
    }
    shown = views.notes(whole, found, names)
    runs = [views.run_facts(name, one) for name, one in zip(names, facts, strict=True)]
    marked = {run["slug"]: [mark for mark, _ in run["marks"]] for run in runs}
    index = {"board": board, "notes": [*notes, *shown], "runs": runs}
    files["index.html"] = pages(
        "index.html",
        root="",
        marks_of=lambda held: list(dict.fromkeys(mark for name in held for mark in marked[name])),
        **index,
    )
    for method in methods.methods(whole, found, names, facts):
        files[f"methods/{method['slug']}.html"] = pages("method.html", root="../", method=method)
    for run, folder in zip(runs, folders, strict=True):
        alone = gather([folder])
        mine = tables(alone)
        name = run["slug"]
        told = views.notes(alone, mine, [name])
        warned = [f"{one.title}: {note}" for one in mine for note in leaderboard.warnings(one, alone)]
        sheet = replace(frames.sheet(alone, mine), notes=[*told, *warned])
        files[f"runs/{name}.csv"], files[f"runs/{name}.json"] = (
            export.csv(sheet.frame),
            export.json_text(sheet),
        )
        files[f"runs/{name}.html"] = pages(
            "run.html", root="../", run=run, tables=views.full(alone, mine), notes=told
        )
    return files


def _pages() -> Any:
    """Renders a template; whatever a bundle says is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER / "site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return lambda name, **facts: environment.get_template(name).render(**facts)


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _check_own(out: Path) -> None:
    """See that a folder holds a site or nothing, before anything is computed for it.

    Raises:
        UserError: it holds something else.
    """
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if strange := [name for name in there if name not in LEFT_OVER]:
        raise UserError(
            f"--out {str(out)!r} holds {strange[0]!r}, which is no part of a site; give a folder of its own."
        )


def _written(files: dict[str, str], out: Path) -> dict[str, int]:
    """Write the files and take away pages of a site that was there before; the bytes of each.

    Raises:
        UserError: they cannot be written.
    """
    try:
        for name in ("methods", "runs"):
            for old in (out / name).glob("*.*"):
                if OURS.fullmatch(f"{name}/{old.name}") and f"{name}/{old.name}" not in files:
                    old.unlink()
        for name, text in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / name, text)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(out)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return {name: len(text.encode()) for name, text in files.items()}
