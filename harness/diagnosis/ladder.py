"""The oracle ladder: how few visual tokens an expression needs if one knows which ones. Rungs that see the
truth, from the referent's own tokens to a greedy search, at a series of token counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from backbones.base import Backbone, Encoding, Row, Turn
from harness import data, metrics
from harness.progress import each
from pruners.base import REFERENT, Pruner, Selection, UserError, View

RUNGS = {
    "referent": "tokens that the referent covers, most covered first; no more than there are",
    "referent + ring": "the same, then the ring of patches around them; no more than there are",
    "greedy": "tokens in the order in which a greedy search adds them, piece by piece",
    "random inside": "tokens that the referent covers, in a random order; no more than there are",
    "random": "all tokens in a random order",
}
ALL = "all"
OWN = 16  # pieces that the greedy search makes of the referent's tokens at most
BLOCK = 0.125  # side of a block of the others, of the grid's shorter side: 3 of 24
NEAREST = 24  # blocks that the greedy search tries; the others follow by distance
TRIED = 4  # pieces that the greedy search tries in a round
ROUNDS = 16  # rounds that try; behind them pieces follow by what they had gained when they were last tried
ENOUGH = 0.95  # of the full IoU
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

Order = tuple[int, ...]


@dataclass(frozen=True)
class Chosen(Pruner):
    """Patches that somebody else chose: what the ladder's rows run under. It is in no registry."""

    name: ClassVar[str] = "ladder"
    reference: ClassVar[str] = "the truth mask"
    kind: ClassVar[Literal["method", "control"]] = "control"
    needs = frozenset({REFERENT})

    def select(self, view: View, budget: int) -> Selection:
        """Nothing to choose: the rows bring their selections."""
        raise UserError("The ladder's rows bring their own tokens; name another pruner.")


@dataclass(frozen=True)
class Ladder:
    """What was measured.

    Attributes:
        counts: token counts, rising; the last one is all tokens.
        rows: one row per expression, rung and count: `sample`, `expression`, `text`, `image`, `rung`,
            `count`, `tokens` that were really kept and `iou`.
        full: one row per expression: `full` IoU of all tokens, `inside` tokens that the referent covers, and
            with the ring around them (`ringed`).
        evaluations: rows that the model ran.
        left_out: expressions whose referent covers no token.
    """

    backbone: str
    fingerprint: str
    datasets: tuple[str, ...]
    limit: int
    seed: int
    counts: tuple[int, ...]
    rows: pd.DataFrame
    full: pd.DataFrame
    evaluations: int
    left_out: int


@dataclass
class _Climb:
    """One expression on its way.

    Attributes:
        share: (N,) part of every patch that the referent covers.
        orders: of every rung but the greedy one, patches in the order in which they are kept.
        found: the greedy search's order so far.
    """

    sample: data.Sample
    place: int
    encoding: Encoding
    turn: Turn
    truth: NDArray[np.uint8]
    share: NDArray[np.float64]
    orders: dict[str, Order]
    pieces: list[Order]
    found: list[int] = field(default_factory=list)
    reached: float = 0.0

    def iou(self, logits: torch.Tensor) -> float:
        inner, outer = metrics.counts((logits > 0).numpy(force=True), self.truth)
        return float(metrics.iou([inner], [outer])[0])


def measure_ladder(
    backbone: Backbone,
    pairs: Sequence[tuple[str, str]],
    limit: int,
    counts: Sequence[int],
    seed: int = 0,
    root: str | None = None,
) -> Ladder:
    """Climb the ladder with all expressions, each asked alone.

    Args:
        pairs: (data set, split).
        limit: images per split, 0 for all.
        counts: token counts; all tokens are added.
        seed: of the random rungs, together with the sample's id.

    Raises:
        UserError: data are missing or damaged, the backbone sees clips or several views, a count is more than
            it has, or no referent covers a token.
    """
    patches = backbone.grid[0] * backbone.grid[1]
    if backbone.medium != "image":
        raise UserError(
            f"The ladder looks at images, and {backbone.name} at clips; give an image backbone, as "
            "glamm-mini."
        )
    if wrong := [count for count in counts if not 1 <= count <= patches]:
        raise UserError(
            f"{backbone.name} has {patches} visual tokens, so the ladder cannot keep {wrong[0]}; give "
            f"--budgets 1 to {patches}."
        )
    steps = tuple(sorted({*counts, patches}))
    kept, left_out, evaluations = [], 0, 0
    names = ", ".join(":".join(pair) for pair in pairs)
    for dataset, split in pairs:
        samples = data.load_samples(dataset, split, root)[: limit or None]
        for sample in each(samples, f"looking at {dataset}:{split}"):
            climbs = list(_begin(backbone, sample, seed))
            left_out += len(sample.expressions) - len(climbs)
            found, ran = _climb(backbone, climbs, steps)
            kept += found
            evaluations += ran
    if not kept:
        raise UserError(f"No referent of {names} covers a visual token; give larger --datasets or --limit.")
    table = pd.DataFrame(kept)
    full = table[table["rung"] == ALL].rename(columns={"iou": "full"})
    return Ladder(
        backbone.name,
        backbone.fingerprint,
        tuple(":".join(pair) for pair in pairs),
        limit,
        seed,
        steps,
        table.drop(columns=["inside", "ringed"]),
        full[["sample", "expression", "text", "image", "full", "inside", "ringed"]].reset_index(drop=True),
        evaluations,
        left_out,
    )


def _begin(backbone: Backbone, sample: data.Sample, seed: int) -> Iterator[_Climb]:
    """The expressions of an image whose referent covers a token."""
    encoding = backbone.encode([sample.image()])[0]
    if (views := len(backbone.regions_of(encoding))) != 1:
        raise UserError(
            f"The ladder looks at one view of an image, and {backbone.name} makes {views}; give another "
            "backbone, as glamm-mini."
        )
    for place, (expression, truth) in enumerate(zip(sample.expressions, sample.masks(), strict=True)):
        covered = truth == metrics.FOREGROUND
        share = backbone.patch_shares(covered[None]).double().numpy(force=True)
        if not (share > 0).any():
            continue
        text = backbone.turn_of(expression.text, expression.form)
        rng = draws(seed, f"{sample.id} {expression.id}")
        orders = orders_of(share, backbone.grid, rng)
        pieces = pieces_of(orders["referent"], share, backbone.grid)
        yield _Climb(sample, place, encoding, text, truth, share, orders, pieces)


def draws(seed: int, name: str) -> np.random.Generator:
    """The source of an expression's draws, the same on every machine and in any order of images."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def orders_of(
    share: NDArray[np.float64], grid: tuple[int, int], rng: np.random.Generator
) -> dict[str, Order]:
    """In which order every rung but the greedy one keeps patches.

    Args:
        share: (N,) part of every patch that the referent covers.
    """
    inside = np.flatnonzero(share > 0)
    referent = inside[np.argsort(-share[inside], kind="stable")]
    ring = np.flatnonzero(_grown((share > 0).reshape(grid)).ravel() & (share <= 0))
    orders = {
        "referent": referent,
        "referent + ring": np.concatenate([referent, ring]),
        "random inside": rng.permutation(inside),
        "random": rng.permutation(len(share)),
    }
    return {name: tuple(order.tolist()) for name, order in orders.items()}


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A set of patches with their eight neighbours."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def pieces_of(referent: Order, share: NDArray[np.float64], grid: tuple[int, int]) -> list[Order]:
    """What the greedy search adds at once: the referent's patches, most covered first, in OWN pieces at most,
    then square blocks of the rest, nearest to the referent first.

    Returns:
        Pieces that hold every patch once.
    """
    size = -(-len(referent) // OWN)
    own = [referent[start : start + size] for start in range(0, len(referent), size)]
    inside = np.array([divmod(patch, grid[1]) for patch in referent], dtype=np.float64)
    side = max(1, round(BLOCK * min(grid)))
    blocks: dict[tuple[int, int], list[int]] = {}
    for patch in np.flatnonzero(share <= 0).tolist():
        row, column = divmod(patch, grid[1])
        blocks.setdefault((row // side, column // side), []).append(patch)

    def distance(block: list[int]) -> float:
        middle = np.mean([divmod(patch, grid[1]) for patch in block], axis=0)
        return float(np.square(inside - middle).sum(1).min())

    return own + [tuple(block) for block in sorted(blocks.values(), key=lambda one: (distance(one), one))]


def _climb(
    backbone: Backbone, climbs: Sequence[_Climb], counts: Sequence[int]
) -> tuple[list[dict[str, object]], int]:
    """The rows of the expressions of one image, and how many rows the model ran."""
    if not climbs:
        return [], 0
    known: dict[tuple[int, frozenset[int]], float] = {}

    def look(asked: Sequence[tuple[int, Order]]) -> None:
        wanted = list(dict.fromkeys((number, frozenset(kept)) for number, kept in asked))
        wanted = [key for key in wanted if key not in known]
        rows = [_row(climbs[number], sorted(kept)) for number, kept in wanted]
        for (number, kept), result in zip(wanted, backbone.ground_rows(rows), strict=True):
            if result.error:
                raise UserError(result.error)
            known[number, kept] = climbs[number].iou(result.logits[0])

    def of(number: int, kept: Sequence[int]) -> float:
        return known[number, frozenset(kept)]

    everything = tuple(range(len(climbs[0].share)))
    look([(number, everything) for number in range(len(climbs))])
    _greedy(climbs, look, of, [ENOUGH * of(number, everything) for number in range(len(climbs))])
    orders = [one.orders | {"greedy": tuple(one.found)} for one in climbs]
    less = [count for count in counts if count < len(everything)]
    look([(k, orders[k][rung][:n]) for k in range(len(climbs)) for rung in RUNGS for n in less])
    rows = []
    for number, one in enumerate(climbs):
        expression = one.sample.expressions[one.place]
        facts = {
            "sample": one.sample.id,
            "expression": expression.id,
            "text": expression.text,
            "image": f"{one.sample.image_id} {one.sample.cluster}",
            "inside": int((one.share > 0).sum()),
            "ringed": len(one.orders["referent + ring"]),
        }
        for rung in RUNGS:
            for count in less:
                kept = orders[number][rung][:count]
                seen = {"rung": rung, "count": count, "tokens": len(kept), "iou": of(number, kept)}
                rows.append(facts | seen)
        seen = {"rung": ALL, "count": len(everything), "tokens": len(everything)}
        rows.append(facts | seen | {"iou": of(number, everything)})
    return rows, len(known)


def _greedy(
    climbs: Sequence[_Climb],
    look: Callable[[Sequence[tuple[int, Order]]], None],
    of: Callable[[int, Sequence[int]], float],
    enough: Sequence[float],
) -> None:
    """Fill `found` of every expression: pieces in the order in which they are added.

    First every piece is tried alone, but for far blocks, which come last. Then, in every round, those TRIED
    pieces that had gained most when they were last tried, and the next of the referent's (or, behind them,
    the nearest), are tried behind what was found so far, and the best is added: a lazy greedy search (Minoux
    1978), which is exact where gains shrink as a set grows; here they need not, so it is a search and no
    bound. It ends where the expression has enough, or after ROUNDS; the pieces that are left follow by what
    they had gained.
    """
    tryable = [one.pieces[: OWN + NEAREST] for one in climbs]
    look([(k, piece) for k, pieces in enumerate(tryable) for piece in pieces])
    gains = [{piece: of(k, piece) for piece in pieces} for k, pieces in enumerate(tryable)]
    for _ in range(ROUNDS):
        tried = {}
        for k, one in enumerate(climbs):
            if not gains[k] or one.reached >= enough[k]:
                continue
            order = sorted(gains[k], key=gains[k].__getitem__, reverse=True)[:TRIED]
            tried[k] = list(dict.fromkeys([*order, next(piece for piece in one.pieces if piece in gains[k])]))
        if not tried:
            break
        look([(k, (*climbs[k].found, *piece)) for k, pieces in tried.items() for piece in pieces])
        for k, pieces in tried.items():
            one = climbs[k]
            for piece in pieces:
                gains[k][piece] = of(k, (*one.found, *piece)) - one.reached
            best = max(pieces, key=gains[k].__getitem__)
            one.reached += gains[k].pop(best)
            one.found.extend(best)
    for k, one in enumerate(climbs):
        for piece in sorted(gains[k], key=gains[k].__getitem__, reverse=True):
            one.found.extend(piece)
        for piece in one.pieces[len(tryable[k]) :]:
            one.found.extend(piece)


def _row(one: _Climb, kept: Sequence[int]) -> Row:
    indices = torch.tensor(kept, dtype=torch.int64, device=one.encoding.hidden_states[-1].device)
    return Row(one.encoding, (one.turn,), Chosen(), len(kept), (Selection(indices),), one.sample.id)
