"""The atlas as one HTML page without scripts: every mean opens the expressions behind it, with pictures. It
asks nothing of a network and opens from a folder."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from backbones.parts.clips import BETWEEN, decoded
from harness.diagnosis.atlas import Atlas, worst
from harness.diagnosis.factors import FACTORS, Factor
from reports.atlas_findings import findings, limits, mark, points
from reports.atlas_tables import bin_heads, coverage_table, difficulty_table, how, rows_table, size
from reports.gallery import recorded_picture
from reports.style import COVER, MASK, TRUTH

PAGE = "atlas.html"
EXAMPLES = 3  # behind every mean
WEB = Path(__file__).parent / "web"
BYTES = 6_000_000  # of pictures and masks in a page
SIDE = 160  # px of a picture's longer side, as shown


class Layers:
    """Pictures, masks and outlines as CSS classes: each is in the page once, however many examples show it.

    Attributes:
        rules: the style sheet.
        left: bytes that may still be added; what does not fit is shown without its picture.
        full: whether something did not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.left, self.full = folder, BYTES, False
        self.rules: list[str] = []
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, key: tuple[Any, ...], kind: str, content: bytes) -> str:
        """The class of a layer; empty if it does not fit any more."""
        if key not in self._known:
            address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            fits = len(address) <= self.left
            self._known[key] = f"l{len(self.rules)}" if fits else ""
            self.full |= not fits
            if fits:
                self.left -= len(address)
                self.rules.append(f".{self._known[key]}{{background-image:url({address})}}")
        return self._known[key]

    def known(self, key: tuple[Any, ...]) -> str | None:
        """The class of a layer that was asked for before."""
        return self._known.get(key)


def html(found: Atlas, folder: Path, command: str) -> str:
    """The page; the same records give the same text.

    Args:
        folder: where it will lie, for links to the run.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    layers = Layers(found.run)
    told = findings(found)
    examples = _examples(found, layers)
    sections = []
    for factor in FACTORS:
        section: dict[str, Any] = {
            "name": factor.name,
            "title": factor.title,
            "sentence": told[factor.name],
            "meaning": factor.meaning,
            "heads": [],
            "rows": [],
            "figure": "",
        }
        if factor.name not in found.unknown:
            section["heads"] = list(bin_heads(found, factor).values())
            section["rows"] = _rows(found, factor, examples)
            section["figure"] = _figure(folder / f"{factor.name}.svg")
        sections.append(section)
    return environment.get_template("atlas.html").render(
        title=f"Why rows lose: {found.backbone}, protocol {found.protocol}",
        command=command,
        score=found.score,
        images=found.images,
        things=found.things,
        expressions=int(found.expressions["asked"].sum()),
        findings=list(told.values()),
        sections=sections,
        tables=[
            ("rows", "Rows: regions and boundaries", told["boundary"], rows_table(found), ""),
            (
                "explained",
                "What coverage explains",
                told["explained"],
                coverage_table(found),
                _figure(folder / "explained.svg"),
            ),
            (
                "difficulty",
                "Hard and easy expressions",
                told["difficulty"],
                difficulty_table(found),
                _figure(folder / "difficulty.svg") if found.split is not None else "",
            ),
        ],
        how=how(found),
        run=Path(os.path.relpath(found.run, folder)).as_posix(),
        full=layers.full,
        style=(WEB / "style.css").read_text(encoding="utf-8"),
        layers="\n".join(layers.rules),
    )


def _figure(path: Path) -> str:
    """An SVG that was drawn before as an address."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _rows(
    found: Atlas, factor: Factor, examples: dict[tuple[int, str, int], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """One row per line: a cell per bin, with what is behind it."""
    heads = bin_heads(found, factor)
    bins = found.bins[found.bins["factor"] == factor.name]
    contrasts = found.contrasts[found.contrasts["factor"] == factor.name].set_index("line")
    rows = []
    for number, part in ((int(part["line"].iloc[0]), part) for _, part in bins.groupby("line", sort=True)):
        facts = found.lines.loc[number]
        by_bin = {int(one["bin"]): one for one in part.to_dict("records")}
        cells = []
        for place in heads:
            one = by_bin.get(place)
            cells.append(
                None
                if one is None
                else {
                    "value": points(one["loss"]),
                    "limits": limits(one, "loss").partition(" ")[2],
                    "count": one["expressions"],
                    "address": f"{factor.name}-{number}-{place}",
                    "examples": examples.get((number, factor.name, place), []),
                }
            )
        contrast = "-"
        if number in contrasts.index:
            last: Any = contrasts.loc[number]
            contrast = limits(last, "difference", True) + mark(last["q"])
        rows.append({"method": facts["pruner"], "budget": size(facts), "cells": cells, "contrast": contrast})
    return rows


def _examples(found: Atlas, layers: Layers) -> dict[tuple[int, str, int], list[dict[str, Any]]]:
    """What is shown behind every mean, by line, factor and bin."""
    shown: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    answers = found.answers[["iou", "loss", "coverage", "mask"]]
    columns = [
        "sample",
        "expression",
        "text",
        "full",
        "picture",
        "height",
        "width",
        "truth",
        "mask",
        "frames",
    ]
    said = found.expressions[columns]
    for one in worst(found, EXAMPLES).to_dict("records"):
        own, asked = answers.loc[one["answer"]], said.loc[one["place"]]
        coverage = own["coverage"]
        shown.setdefault((int(one["line"]), str(one["factor"]), int(one["bin"])), []).append(
            {
                "text": asked["text"],
                "sample": f"{asked['sample']}, expression {asked['expression']}",
                "scores": f"{points(asked['full'])} to {points(own['iou'])}",
                "coverage": "" if np.isnan(coverage) else f", coverage {points(coverage)} %",
                "rank": int(one["rank"]) + 1,
                "shots": _shots(asked, str(own["mask"]), one, layers) if one["pictured"] else None,
            }
        )
    return shown


def _shots(asked: Any, mask: str, one: dict[Any, Any], layers: Layers) -> dict[str, Any] | None:
    """Truth, full mask and own mask over the picture of the (first) frame; None without one, or where the
    page is full."""
    place = int(one["place"])
    picture = layers.known(("picture", asked["picture"]))
    if picture is None:
        file = recorded_picture(layers.folder, str(asked["picture"]))
        if file is None:
            return None
        picture = layers.add(("picture", asked["picture"]), "jpeg", file.read_bytes())
    size = int(asked["height"]), int(asked["width"])
    scale = min(1.0, SIDE / max(size))
    small = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    truth = layers.known(("truth", place))
    if truth is None:
        pixels = _scaled(str(asked["truth"]), size, small)
        truth = layers.add(("truth", place), "png", _png(_outline(pixels), TRUTH, 255))
    full = layers.known(("full", place))
    if full is None:
        full = layers.add(("full", place), "png", _masked(str(asked["mask"]), size, small))
    own = layers.known(("own", int(one["answer"])))
    if own is None:
        own = layers.add(("own", int(one["answer"])), "png", _masked(mask, size, small))
    if not all((picture, truth, full, own)):
        return None
    return {
        "height": small[0],
        "width": small[1],
        "panels": [
            ("truth", [picture, truth]),
            ("all tokens", [picture, full, truth]),
            ("kept", [picture, own, truth]),
        ],
    }


def _masked(text: str, size: tuple[int, int], small: tuple[int, int]) -> bytes:
    return _png(_scaled(text, size, small), MASK, round(255 * COVER))


def _scaled(text: str, size: tuple[int, int], small: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of the first frame at the size at which it is shown."""
    mask = decoded(text.split(BETWEEN)[0], *size)[0]
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(small[::-1], Image.Resampling.BOX)) >= 128


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that have a neighbour outside it."""
    inside = np.pad(mask, 1)
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    found: NDArray[np.bool_] = mask & ~whole
    return found


def _png(mask: NDArray[np.bool_], colour: str, alpha: int) -> bytes:
    """A mask in one colour, transparent elsewhere."""
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, *ImageColor.getrgb(colour)])
    kept = io.BytesIO()
    image.save(kept, "PNG", bits=1, transparency=bytes([0, alpha]), optimize=True)
    return kept.getvalue()
