"""`python -m tests.bench.attention`: what fused attention and the rows that are really read save, in one run
on this machine.

Every pruner's selection against a literal implementation of its official code, both from the same signals of
a tower of full size (CLIP ViT-L/14-336, random values), and FastV's single row against the whole eager map of
a 7B layer. The selections must be the same in float64. Medians of interleaved repetitions on one thread, in
processor time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from backbones.glamm.full_size import LLM
from backbones.parts import llama
from backbones.parts.clip import class_row, received
from pruners import Need, Pruner, VisualTokens, parse
from pruners.base import LLM_PATCHES, PROJECTED_PATCHES, TEXT_EMBEDS, top
from tests.bench import literal

BUDGETS = (192, 128, 64)
# times faster, where both sides choose the same: in float64. Anything else has to be faster at all;
# vispruner's similarities are float64 whatever the model computes in, so in float32 it does the heavier
# arithmetic.
TARGETS = {
    ("prumerge", torch.float64): 5.0,
    ("vispruner", torch.float64): 5.0,
    ("fastv", torch.float32): 10.0,
}
BEFORE, PATCHES, AFTER = 37, 576, 92
DEPTH = 24  # layers of CLIP ViT-L/14


def tower(
    dtype: torch.dtype,
    texts: int,
    channels: int = 1024,
    shared: int = 768,
    heads: int = 16,
    side: int = 24,
    width: int = LLM["hidden_size"],
) -> literal.Tower:
    """A tower's signals with random values."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    n = side * side + 1
    layers = (-1, -2, literal.MIDDLE)
    queries, keys, values = ({layer: noise(n, channels) for layer in layers} for _ in range(3))
    return literal.Tower(
        noise(n, channels),
        queries,
        keys,
        values,
        noise(side * side, shared),
        noise(texts, shared),
        noise(side * side, width),
        heads,
        (side, side),
    )


def tokens(given: literal.Tower) -> VisualTokens:
    """The same signals as our pruners read them: a class row is computed, a map never is."""

    def answer(need: Need) -> Tensor:
        if need == PROJECTED_PATCHES:
            return given.projected
        if need == TEXT_EMBEDS:
            return given.text
        if need == LLM_PATCHES:
            return given.llm
        index = need.index(DEPTH)
        layer = index if index in given.keys else index - DEPTH
        queries, keys = given.queries[layer], given.keys[layer]
        match need.kind:
            case "cls_query":
                return queries[0]
            case "keys":
                return keys
            case "values":
                return given.values[layer]
            case "received_attention":
                return received(queries, keys, given.heads)
        return class_row(queries[0], keys, given.heads)

    return VisualTokens(given.hidden[1:], given.hidden[0], given.grid, given.heads, answer)


def ours(pruner: Pruner, given: literal.Tower, budget: int) -> literal.Chosen:
    """Our pruner's (indices, features)."""
    seen = tokens(given)
    selection = pruner.select(seen.only(pruner.needs), budget)
    return selection.indices, selection.gather(seen)


def medians(runs: list[Callable[[], Any]], repeat: int) -> list[float]:
    """Median milliseconds of each, taken in turns; processor time, which on one thread no neighbour adds
    to."""
    for run in runs:
        run()
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for run, spent in zip(runs, found, strict=True):
            begin = time.process_time()
            run()
            spent.append(1000 * (time.process_time() - begin))
    return [sorted(spent)[len(spent) // 2] for spent in found]


def same(one: literal.Chosen, other: literal.Chosen) -> bool:
    """Whether two selections are equal: the same tokens in the same order, features to rounding."""
    return bool((one[0] == other[0]).all()) and torch.allclose(one[1], other[1], atol=1e-9)


def selections(repeat: int, dtype: torch.dtype, texts: int) -> list[dict[str, Any]]:
    """One row per method and budget."""
    rows = []
    given, exact = tower(dtype, texts), tower(torch.float64, texts)
    for name, official in literal.OFFICIAL.items():
        pruner = parse(name)[0]
        for budget in BUDGETS:
            mine, theirs = medians(
                [partial(ours, pruner, given, budget), partial(official, given, budget)], repeat
            )
            equal = same(ours(pruner, exact, budget), official(exact, budget))
            rows.append(
                _row(
                    name, f"{budget} tokens, {texts} question{'s' * (texts > 1)}", dtype, mine, theirs, equal
                )
            )
    return rows


def _row(name: str, what: str, dtype: torch.dtype, mine: float, theirs: float, equal: bool) -> dict[str, Any]:
    return {
        "method": name,
        "what": what,
        "dtype": str(dtype).removeprefix("torch."),
        "ours_ms": mine,
        "literal_ms": theirs,
        "ratio": theirs / mine,
        "target": TARGETS.get((name, dtype), 1.0),
        "same_in_float64": equal,
    }


def layer_of(dtype: torch.dtype, width: int, heads: int, inner: int) -> LlamaModel:
    """One decoder layer with random weights."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=1,
        vocab_size=3,
    )
    return llama.build_llama(config, "sdpa").to(dtype).eval().requires_grad_(False)


def ours_row(llm: LlamaModel, hidden: Tensor, keys: Tensor, visual: slice) -> Tensor:
    """(1, H, n): the one row that FastV reads."""
    length = hidden.shape[1]
    read = torch.tensor([[length - 1]])
    states, turns = llama.tokens_at(hidden, read), llama.rotary(llm, read, hidden.dtype)
    logits = llama.Layer(llm, 0).logits(states, keys, llama.unseen(read, length), turns)
    return llama.probabilities(logits)[:, :, 0, visual]


def fastv(repeat: int, dtype: torch.dtype, width: int, heads: int, inner: int) -> list[dict[str, Any]]:
    """FastV's score in one layer: the last token's row against the row of the whole eager map."""
    torch.manual_seed(0)
    rows = {}
    for kind in (dtype, torch.float64):
        llm, length = layer_of(kind, width, heads, inner), BEFORE + PATCHES + AFTER
        hidden = torch.randn(1, length, width, dtype=torch.float64).to(kind)
        rotary = llm.rotary_emb(hidden, torch.arange(length)[None])
        keys = torch.randn(1, heads, length, width // heads, dtype=torch.float64).to(kind)
        visual = slice(BEFORE, BEFORE + PATCHES)
        row = partial(ours_row, llm, hidden, keys, visual)
        whole = partial(literal.fastv_row, llm.layers[0], hidden, keys, rotary, visual)
        rows[kind] = row, whole
    row, whole = rows[torch.float64]
    kept = top(row()[0].mean(0), 192).sort().values
    equal = bool((kept == literal.ranked(whole())[:192].sort().values).all())
    mine, theirs = medians(list(rows[dtype]), repeat)
    return [_row("fastv", f"one layer, {BEFORE + PATCHES + AFTER} tokens", dtype, mine, theirs, equal)]


def main() -> int:
    """Print the table; exit code 1 if a target is missed or a selection differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attention", description=__doc__)
    parser.add_argument(
        "--repeat", type=int, default=7, help="timed repetitions of each (default %(default)s)"
    )
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = fastv(
        repeat, torch.float32, LLM["hidden_size"], LLM["num_attention_heads"], LLM["intermediate_size"]
    )
    for dtype, texts in ((torch.float64, 1), (torch.float32, 1), (torch.float32, 3)):
        rows += selections(repeat, dtype, texts)
    frame = pd.DataFrame(rows)
    print(frame.to_markdown(index=False, floatfmt=".2f"))
    missed = frame[(frame["ratio"] < frame["target"]) | ~frame["same_in_float64"]]
    print(
        f"{len(frame) - len(missed)} of {len(frame)} rows reach their target with the same selection in "
        f"float64"
    )
    return 1 if len(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
