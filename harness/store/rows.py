"""What a record may say: the fields of each kind of row, and the one check for writing, reading and
compacting them."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_EXPRESSION = -1  # id and place in the row of a failed sample
NO_CELL = ""  # cell of the rows that describe a sample
# fields of a row and their types in Parquet: of every row, and of each status
KEYS = {"cell": "string", "sample": "string", "place": "int64", "of": "int64", "status": "string"}
ASKED = {"dataset": "string", "split": "string", "expression": "int64"}
# `content`: digest of the sample's expressions, targets and image bytes; None in journals before schema 4
OF_SAMPLE = ASKED | {
    "text": "string",
    "group": "string",
    "height": "int64",
    "width": "int64",
    "truth": "string",
    "image": "string",
    "content": "string",
}
# `code`: empty, or what computed the row where that is not its cell's own code (--keep-code)
OF_CELL = {
    "backbone": "string",
    "protocol": "string",
    "pruner": "string",
    "budget": "int64",
    "seed": "int64",
    "code": "string",
}
COUNTED = {
    "tokens_final": "int64",
    "tokens_mean": "float64",
    "intersection": "int64",
    "union": "int64",
    "iou": "float64",
}
# the medium, as `harness.data.Sample.cluster`; its frames, the views that the vision tower made of it, of a
# clip the number of the frame that each view shows ("0 5 10 15"), and all tokens that the language model's
# first layer sees, None where the backbone does not say
SEEN = {"cluster": "string", "frames": "int64", "views": "int64", "shown": "string", "tokens_llm": "int64"}
# of generated answers whether the model wrote [SEG] (1) or not (0), and all that it wrote, None and "" of
# forced ones; log-probability of [SEG] at its place, None where none was written or the backbone does not say
ANSWERED = {"seg_said": "int64", "seg_logprob": "float64", "wrote": "string"}
# what metrics of others count, by column, and what metrics of clips count in every frame
MEASURED = {"measures": "measures", "curves": "curves"}
SHOWN = {"coverage": "float64", "kept": "string", "mask": "string"}
# of some images: what another kernel's rounding would change, kept patches exchanged and IoU (0..1) moved
ROUNDED = {"rounding_tokens": "float64", "rounding_iou": "float64"}
STATUS = {
    "failed": ASKED | OF_CELL | {"reason": "string"},
    "sample": OF_SAMPLE,
    "ok": ASKED | OF_CELL | COUNTED | ROUNDED | SHOWN | SEEN | ANSWERED | MEASURED,
}
# absent in journals of schema 2, 3, 4 or 5; `cluster` is then the image that the sample's id
# names
OF_SCHEMA_3 = {"cluster": "", "frames": 1, "views": 1, "tokens_llm": None, "measures": {}}
OF_SCHEMA_4 = {"seg_said": None, "seg_logprob": None, "wrote": ""}
OF_SCHEMA_5: dict[str, Any] = {"curves": {}, "shown": ""}
OPTIONAL: dict[str, dict[str, Any]] = {
    "ok": {"code": "", "rounding_tokens": None, "rounding_iou": None}
    | OF_SCHEMA_3
    | OF_SCHEMA_4
    | OF_SCHEMA_5,
    "failed": {"code": ""},
    "sample": {"group": "", "content": None},
}
NUMBERS_OR_NONE = ("coverage", *ROUNDED, "tokens_llm", "seg_said", "seg_logprob")
NULLABLE = (*NUMBERS_OR_NONE, "content")
LARGEST = 2**63
# the letters of COCO's compressed run lengths, one blank between the frames of a clip
RUN_LENGTHS = re.compile(r"[0-o]*( [0-o]+)*")
FRAMES = re.compile(r"[0-9]{1,9}( [0-9]{1,9})*")
CONTENT = re.compile(r"[0-9a-f]{16}")
PICTURE = re.compile(r"images/[^/\\\x00]+\.jpg")


def pack_tokens(indices: NDArray[np.int64], count: int) -> str:
    """Kept patches of `count` as text: base64 of a bitmap in raster order; what is no patch (index < 0) is
    not in it."""
    bitmap = np.zeros(count, dtype=bool)
    bitmap[indices[indices >= 0]] = True
    return base64.b64encode(np.packbits(bitmap).tobytes()).decode()


def kept_tokens(text: str, count: int) -> NDArray[np.bool_]:
    """The bitmap that `pack_tokens` wrote, (count,) bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count).astype(bool)


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same row."""
    return row["cell"], row["sample"], row["place"]


def validate(row: dict[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The row, if a number may come of it; optional fields are filled in.

    Args:
        cells: what `run.json` says of every cell, by its id.

    Raises:
        ValueError: a field is missing, of another type or out of range, fields contradict each other, the
            cell is unknown or another one than the row says, or the tokens are not the budget.
    """
    status = row.get("status")
    if not isinstance(status, str) or status not in STATUS:
        raise ValueError(f"its status is {status!r}")
    row = OPTIONAL[status] | row
    if status == "ok" and row["cluster"] == "":
        row["cluster"] = image_of(str(row.get("sample")))
    for name, kind in (KEYS | STATUS[status]).items():
        if name not in row:
            raise ValueError(f"it has no {name}")
        if not _is(row[name], kind) and not (name in NULLABLE and row[name] is None):
            raise ValueError(f"its {name} is {str(row[name])[:40]!r}")
    if not row["sample"].startswith(f"{row['dataset']}:{row['split']}:"):
        raise ValueError(f"its sample {row['sample']!r} is not of {row['dataset']}:{row['split']}")
    if row["of"] < 1 or row["place"] < NO_EXPRESSION:
        raise ValueError(f"it is number {row['place']} of {row['of']}")
    if status == "sample":
        _description(row)
    else:
        _of_cell(row, cells)
    if status == "ok":
        _counts(row, cells[row["cell"]])
    return row


def _is(value: Any, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str) and (
            value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
        )
    if kind == "measures":
        return isinstance(value, dict) and all(
            _is(name, "string") and _is(one, "float64") for name, one in value.items()
        )
    if kind == "curves":
        return isinstance(value, dict) and all(
            _is(name, "string") and isinstance(one, list) and all(_is(count, "int64") for count in one)
            for name, one in value.items()
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value < LARGEST and (kind == "float64" or isinstance(value, int))  # NaN is neither


def image_of(sample: str) -> str:
    """What tells a sample's image from others in its id, which is all that older records say of it."""
    return sample.rpartition(":")[2]


def _description(row: dict[str, Any]) -> None:
    if not is_description(row["cell"]) or not 0 <= row["place"] < row["of"]:
        raise ValueError("it describes a sample, and names a cell or no place")
    if min(row["height"], row["width"]) < 1:
        raise ValueError(f"its image is {row['width']}x{row['height']} px")
    if row["image"] and not PICTURE.fullmatch(row["image"]):
        raise ValueError(f"its picture {row['image'][:40]!r} is not one of the run's images/")
    if not RUN_LENGTHS.fullmatch(row["truth"]):
        raise ValueError("its truth is no run-length code")
    if row["content"] is not None and not CONTENT.fullmatch(row["content"]):
        raise ValueError(f"its content {row['content'][:40]!r} is no digest")


def description(code: str) -> str:
    """What stands for the cell in a row that describes a sample: the code that made its masks."""
    return f"@{code}"


def is_description(cell: str) -> bool:
    """Whether a row's cell says that it describes a sample; in journals of schema 2 it is empty."""
    return cell == NO_CELL or cell.startswith("@")


def _of_cell(row: dict[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> None:
    cell = cells.get(row["cell"])
    if cell is None:
        raise ValueError(f"run.json knows no cell {row['cell'][:40]!r}")
    said = cell | cell.get("setting", {})
    for name in ("backbone", "protocol", "dataset", "split", "pruner", "budget", "seed"):
        if name in said and said[name] != row[name]:
            raise ValueError(f"its {name} is {row[name]!r} and its cell's {said[name]!r}")


def _answer(row: dict[str, Any], cell: Mapping[str, Any]) -> None:
    said, logprob = row["seg_said"], row["seg_logprob"]
    answers = cell.get("setting", {}).get("answers", "forced")
    if said not in ((None,) if answers == "forced" else (0, 1)):
        raise ValueError(f"its answer is {answers} and its [SEG] said {said!r} times")
    if said == 0 and (row["intersection"] or logprob is not None):
        raise ValueError("it has a mask, and the model said no [SEG]")
    if logprob is not None and logprob > 1e-3:  # rounded
        raise ValueError(f"its [SEG] has a log-probability of {logprob}")


def _shown(row: dict[str, Any]) -> None:
    if not row["shown"]:  # of an image, or of before it was recorded
        return
    if not FRAMES.fullmatch(row["shown"]):
        raise ValueError(f"its views show {row['shown'][:40]!r}, no numbers of frames")
    shown = [int(one) for one in row["shown"].split(" ")]
    if len(shown) != row["views"] or max(shown) >= row["frames"]:
        raise ValueError(
            f"its {row['views']} views show {len(shown)} frames up to {max(shown)} of {row['frames']}"
        )


def _curves(row: dict[str, Any]) -> None:
    curves, said = row["curves"], row["measures"]
    odd = next((name for name, one in curves.items() if len(one) != row["frames"]), None)
    if odd is not None:
        raise ValueError(f"its {odd} has {len(curves[odd])} frames and its clip {row['frames']}")
    # an image's measures are anybody's; before schema 6 there was nothing else
    if row["frames"] <= 1 and not curves and "j_fixed" not in said:
        return
    from harness.metrics.video import CURVES, check_measures, means_of

    if not curves.keys() & set(CURVES) and not said.keys() & {"j", "f"}:  # nobody knows the truth
        if row["union"]:
            raise ValueError(f"it has a union of {row['union']} pixels, and neither J and F nor their frames")
        return
    means, counted = (said.get("j"), said.get("f")), means_of(curves)
    if means != counted:
        raise ValueError(f"its J and F are {means} and those of its frames {counted}")
    check_measures(said)


def _counts(row: dict[str, Any], cell: Mapping[str, Any]) -> None:
    inner, outer = row["intersection"], row["union"]
    if not 0 <= inner <= outer:
        raise ValueError(f"its intersection is {inner} and its union {outer}")
    if row["iou"] != (inner / outer if outer else 1.0):
        raise ValueError(f"its iou {row['iou']} is not {inner} / {outer}")
    if row["place"] < 0:
        raise ValueError("it has no place among the expressions")
    if row["coverage"] is not None and not 0 <= row["coverage"] <= 1 + 1e-9:
        raise ValueError(f"its coverage is {row['coverage']}")
    if not RUN_LENGTHS.fullmatch(row["mask"]):
        raise ValueError("its mask is no run-length code")
    frames = row["mask"].count(" ") + 1 if row["mask"] else 0
    if frames != row["frames"] and (frames or row["frames"] > 1):
        raise ValueError(f"its mask has {frames} frames and its clip {row['frames']}")
    _shown(row)
    _curves(row)
    _answer(row, cell)
    if not row["cluster"] or min(row["frames"], row["views"]) < 1:
        raise ValueError(
            f"its medium is {row['cluster']!r} of {row['frames']} frames and {row['views']} views"
        )
    if row["protocol"] == "each" and row["place"] >= row["of"]:
        raise ValueError(f"it is number {row['place']} of {row['of']}")
    if not 0 <= (row["rounding_tokens"] or 0) <= row["tokens_final"] or abs(row["rounding_iou"] or 0) > 1:
        raise ValueError(f"its rounding is {row['rounding_tokens']} tokens and {row['rounding_iou']} of IoU")
    final, mean, views = row["tokens_final"], row["tokens_mean"], row["views"]
    # a budget is one of each view, of which a model that pools sends something else
    budget = cell.get("sent", row["budget"]) * views
    pooled = cell.get("pooled", 1)
    try:
        kept = int.from_bytes(base64.b64decode(row["kept"], validate=True), "big").bit_count()
    except binascii.Error as error:
        raise ValueError(f"its kept tokens are no bitmap ({error})") from None
    if row["tokens_llm"] is not None and row["tokens_llm"] < mean:
        raise ValueError(f"its language model saw {row['tokens_llm']} tokens, {mean} visual ones among them")
    if not 0 <= kept <= pooled * final or mean < final or (cell.get("stage") == "tower" and mean != final):
        raise ValueError(f"it kept {kept} patches as {final} tokens, {mean} on average")
    if cell.get("budget_kind") == "final" and final != budget:
        raise ValueError(f"it ended at {final} tokens where the budget is {budget}")
    # a mean over L layers is met to one token of the layers behind the cut
    if cell.get("budget_kind") == "mean" and abs(mean - row["budget"] * views) > views:
        raise ValueError(f"it saw {mean} tokens on average where the budget is {budget}")
    if grid := cell.get("grid"):
        patches = math.prod(grid) * views
        if len(row["kept"]) != 4 * math.ceil(math.ceil(patches / 8) / 3) or final > patches or mean > patches:
            raise ValueError(f"its tokens do not fit a grid of {patches} patches")
