"""`python -m tests.bench.literal_layers`: choices inside the language model as the official codes make them,
against ours, in one run on this machine.

The literal side computes whole maps for single rows of them, projects all tokens for one query, and goes
token by token, as the methods' descriptions say that the releases do; FEATHER's and Nuwa's, too. Both sides
get the same states of one layer of 7B (32 heads of 128, random weights) and its keys, which the layer has
anyway. The choices must be the same in float64. Medians of interleaved repetitions on one thread, in
processor time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from backbones.glamm.full_size import LLM
from backbones.parts import llama
from backbones.parts.cuts import Cutting, Sequences
from backbones.parts.faithful import _at_cut
from pruners import Cut, Need, Selection, View, parse
from pruners.feather import Feather
from pruners.nuwa import UPPER, Nuwa
from pruners.sparsevlm import clusters, pool_size
from tests.bench.attention import AFTER, BEFORE, PATCHES, medians
from tests.bench.literal import ranked

GRID = (24, 24)
Chosen = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Given:
    """A sequence at a cut before layer 1 of two, (1, L, width) each.

    Attributes:
        entered: what entered layer 0, and the model.
        hidden: what enters layer 1.
    """

    llm: Any
    entered: Tensor
    hidden: Tensor
    past: llama.Past

    @property
    def visual(self) -> slice:
        """Where the image stands."""
        return slice(BEFORE, BEFORE + PATCHES)

    def projected(self, layer: int, states: Tensor, turned: bool = True) -> tuple[Tensor, Tensor]:
        """(H, L, d) queries and keys of all tokens, as the official codes project them again."""
        one = llama.Layer(self.llm, layer)
        places = torch.arange(states.shape[1])[None]
        by = llama.rotary(self.llm, places, states.dtype)
        if not turned:
            by = torch.ones_like(by[0]), torch.zeros_like(by[1])
        query, key, _ = one.project(states, by)
        return query[0], key[0]

    def map(self, layer: int, states: Tensor) -> Tensor:
        """(H, L, L) softmax of all rows."""
        query, key = self.projected(layer, states)
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        ahead = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        return llama.probabilities(logits.masked_fill(ahead, -torch.inf))


def given(dtype: torch.dtype, width: int, heads: int, inner: int) -> Given:
    """Two layers with random weights, behind the first of which a cut is made."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=2,
        vocab_size=3,
    )
    llm: LlamaModel = llama.build_llama(config, "sdpa").to(dtype).eval().requires_grad_(False)
    entered = torch.randn(1, BEFORE + PATCHES + AFTER, width, dtype=torch.float64).to(dtype)
    past = llama.Past()
    by = llama.rotary(llm, torch.arange(entered.shape[1])[None], dtype)
    return Given(llm, entered, llama.Layer(llm, 0)(entered, by, past), past)


def ours(text: str, at: Given, count: int) -> Chosen:
    """What our pruner chooses at the cut, signals computed anew."""
    pruner = parse(text)[0]
    places = torch.arange(at.hidden.shape[1])[None]
    rows = Sequences(BEFORE, torch.arange(PATCHES)[None], places, [1])
    seen = _at_cut(at.llm, 1, 0, rows, at.past, at.hidden, at.entered, at.entered)

    def choose(_: Any, tokens: Any, left: int) -> Selection:
        return pruner.cut(tokens.only(pruner.needs), left)

    found = seen.chosen(0, Cutting(pruner, (Cut(1, count),), choose=choose, grid=GRID)).selection
    return found.indices, found.features


def mask_order(kept: Tensor) -> Tensor:
    """Ascending, by way of a mask over all tokens."""
    mask = torch.zeros(PATCHES, dtype=torch.bool)
    mask[kept] = True
    return mask.nonzero()[:, 0]


# -- the official codes


def sparsevlm(at: Given, count: int) -> Chosen:
    """The whole map in eager attention; then clusters over distances of all pairs, one member at a time."""
    visual, text = at.visual, slice(BEFORE + PATCHES, at.hidden.shape[1])
    inputs = at.entered[0]
    looks = (inputs[visual] @ inputs[text].T).softmax(1).mean(0)
    raters = (looks > looks.mean()).nonzero()[:, 0] + text.start
    score = at.map(0, at.entered).mean(0)[raters][:, visual].mean(0)
    left = next(k for k in range(count, 0, -1) if k + clusters(PATCHES - k) == count)
    kept = mask_order(ranked(score)[:left])
    rest = torch.tensor([k for k in range(PATCHES) if k not in set(kept.tolist())])
    pool = rest[ranked(score[rest])[: pool_size(len(rest))]]
    groups, states = clusters(len(rest)), at.hidden[0, visual][pool]
    far = torch.stack([(states - one).square().sum(1).sqrt() for one in states]) / states.shape[1] ** 0.5
    density = (-far.topk(groups, largest=False).values.square().mean(1)).exp()
    denser = (density[None] > density[:, None]).to(far.dtype)
    lonely = (far * denser + far.max() * (1 - denser)).min(1).values
    centres = ranked(density * lonely)[:groups]
    group = far[centres].min(0).indices
    group[centres] = torch.arange(groups)
    one_hot = F.one_hot(group, groups).to(states.dtype)
    merged = (one_hot.T @ states) / (one_hot.sum(0)[:, None] + 1e-6)
    marks = kept.new_full((groups,), -2)
    return torch.cat([kept, marks]), torch.cat([at.hidden[0, visual][kept], merged])


def pyramiddrop(at: Given, count: int) -> Chosen:
    """Norm, queries and keys of all tokens with the next layer's weights, a mask L x L for one row."""
    score = at.map(1, at.hidden).mean(0)[-1, at.visual]
    return mask_order(ranked(score)[:count]), None


def dart(at: Given, count: int) -> Chosen:
    """Pivot by pivot over lists, and cosines one pivot at a time."""
    keys = at.past.layers[0][0][0].transpose(0, 1).flatten(1)
    normed = llama.norm(at.llm, at.hidden)[0]
    norms = keys.abs().sum(1)
    image, words = norms[at.visual], norms[BEFORE + PATCHES :]
    pivots = [BEFORE + int(k) for k in ranked(image)[:4]]
    order = list(set(pivots + [BEFORE + PATCHES + int(k) for k in ranked(words)[:4]]))
    kept, free = set(pivots), [k for k in range(BEFORE, BEFORE + PATCHES) if k not in pivots]
    each, more = divmod(count - 4, len(order))
    for number, pivot in enumerate(order):
        like = F.cosine_similarity(normed[free], normed[pivot].expand(len(free), -1), dim=1)
        taken = {free[int(k)] for k in ranked(-like)[: each + (number < more)]}
        kept |= taken
        free = [k for k in free if k not in taken]
    return torch.tensor(sorted(k - BEFORE for k in kept)), None


def feather(at: Given, count: int) -> Chosen:
    """Norm and projections of the layer again for all tokens, all rows without positions, the last one
    read."""
    query, key = at.projected(0, at.entered, turned=False)
    logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    score = logits[:, -1, at.visual].softmax(-1).mean(0)
    step = Feather().step(count, GRID)
    even = {r * GRID[1] + c for r in range(0, GRID[0], step) for c in range(0, GRID[1], step)}
    best = [int(k) for k in ranked(score) if int(k) not in even]
    return torch.tensor(sorted(even | set(best[: count - len(even)]))), None


def nuwa_cut(at: Given, count: int) -> Chosen:
    """One more map of the layer beside the fused attention, for its last row."""
    score = at.map(0, at.entered).mean(0)[-1, at.visual]
    return mask_order(ranked(score)[:count]), None


OFFICIAL: dict[str, Callable[[Given, int], Chosen]] = {
    "sparsevlm": sparsevlm,
    "pyramiddrop": pyramiddrop,
    "dart": dart,
    "feather": feather,
    "nuwa": nuwa_cut,
}


# -- Nuwa's choice of the tower's output


def tower(dtype: torch.dtype, channels: int = 1024, heads: int = 16) -> View:
    """A tower's signals with random values."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    patches, attention = noise(PATCHES, channels), noise(heads, PATCHES + 1).softmax(-1)
    upper = {Need("hidden", layer): noise(PATCHES + 1, channels) for layer in UPPER}
    signals = upper | {Need("cls_attention", -2): attention}
    return View(patches, None, GRID, heads, signals.__getitem__)


def nuwa_tower(view: View, count: int) -> Chosen:
    """Cells by unfolding, cosines and distances of all pairs, token by token."""
    attention = view.cls_attention(-2).sum(0)[1:]
    cells = F.unfold(attention.view(1, 1, *GRID).double(), 2, stride=2)[0].T
    each, candidates = -(-count // len(cells)), []
    for cell, values in enumerate(cells):
        row, column = 2 * (cell // (GRID[1] // 2)), 2 * (cell % (GRID[1] // 2))
        candidates += [(row + int(k) // 2) * GRID[1] + column + int(k) % 2 for k in ranked(values)[:each]]
    candidates_ = torch.tensor(sorted(candidates))
    kept = candidates_[ranked(attention[candidates_])[:count]].sort().values
    own = attention[kept] >= torch.quantile(attention[kept].float(), 0.55).to(attention.dtype)
    states = F.normalize(torch.stack([view.hidden(layer)[1:] for layer in UPPER]).mean(0), dim=1)
    like = (states @ states.T).relu()
    place = torch.stack(torch.meshgrid(*map(torch.arange, GRID), indexing="ij"), dim=-1).reshape(-1, 2)
    far = (place[:, None] - place[None]).to(states.dtype).norm(dim=2)
    weight = like * (1 - far / 280**0.5).clamp(min=0)
    out = []
    for patch, alone in zip(kept.tolist(), own.tolist(), strict=True):
        if alone:
            out.append(view.patches[patch])
            continue
        row = weight[patch] / (weight[patch].sum() + 1e-8)
        row[patch] = 1
        out.append((row[:, None] * view.patches).sum(0))
    return kept, torch.stack(out)


def ours_tower(view: View, count: int) -> Chosen:
    """What Nuwa of ours makes of the same."""
    found = Nuwa().select(view, count)
    return found.indices, found.features


# -- the table


def same(one: Chosen, other: Chosen) -> bool:
    """Whether two choices are equal: the same tokens in the same order, features to rounding."""
    if one[0].tolist() != other[0].tolist() or (one[1] is None) != (other[1] is None):
        return False
    return one[1] is None or other[1] is None or torch.allclose(one[1], other[1], atol=1e-9)


def rows(
    repeat: int, counts: tuple[int, ...], width: int, heads: int, inner: int, channels: int = 1024
) -> list[dict[str, Any]]:
    """One row per method and count."""
    found = []
    timed, exact = (given(dtype, width, heads, inner) for dtype in (torch.float32, torch.float64))
    views = {dtype: tower(dtype, channels) for dtype in (torch.float32, torch.float64)}
    for count in counts:
        sides: dict[str, list[tuple[Callable[[], Chosen], Callable[[], Chosen]]]] = {
            name: [(partial(ours, name, at, count), partial(official, at, count)) for at in (timed, exact)]
            for name, official in OFFICIAL.items()
        }
        sides["nuwa, tower"] = [
            (partial(ours_tower, view, count), partial(nuwa_tower, view, count)) for view in views.values()
        ]
        for name, (clock, check) in sides.items():
            mine, theirs = medians(list(clock), repeat)
            equal = same(check[0](), check[1]())
            facts = {"method": name, "tokens": count, "ours_ms": mine, "literal_ms": theirs}
            found.append(facts | {"ratio": theirs / mine, "same_in_float64": equal})
    return found


def main() -> int:
    """Print the table; exit code 1 if ours is not faster or chooses something else."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.literal_layers", description=__doc__)
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed repetitions of each (default %(default)s)"
    )
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    frame = pd.DataFrame(
        rows(repeat, (192, 64), LLM["hidden_size"], LLM["num_attention_heads"], LLM["intermediate_size"])
    )
    print(frame.to_markdown(index=False, floatfmt=".2f"))
    missed = frame[(frame["ratio"] < 1) | ~frame["same_in_float64"]]
    print(f"{len(frame) - len(missed)} of {len(frame)} rows are faster with the same choice in float64")
    return 1 if len(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
