"""Greedy generation behind a prompt, with what the language model knows of it: keys and values are computed
once, and behind a cut every layer has its own."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past

MOST_NEW = 512  # tokens of an answer, as in the official codes


@dataclass(frozen=True)
class Written:
    """One answer.

    Attributes:
        ids: the model's own tokens, the one that ends it included.
        state: (width,) final state that the first [SEG] was written from; None if there is none.
        logprob: log-probability of that [SEG]; NaN without one.
    """

    ids: tuple[int, ...]
    state: Tensor | None
    logprob: float


@dataclass(frozen=True)
class Writer:
    """Writes answers up to their first [SEG], or to their end.

    Attributes:
        head: (B, width) final states -> (B, vocabulary) logits.
        seg, ends: id of [SEG], and those of what ends an answer.
        most: tokens of an answer that is not ended.
        whole: go on behind [SEG] to the end.
    """

    llm: LlamaModel
    head: Callable[[Tensor], Tensor]
    seg: int
    ends: Container[int]
    most: int = MOST_NEW
    whole: bool = False

    def __call__(self, states: Tensor, past: Past, first: Tensor | None, rows: int) -> list[Written]:
        """Answers of the first `rows` of a batch; what follows is fill.

        Args:
            states: (B, width) final states of the last prompt tokens.
            past: keys and values of the prompts, by layer.
            first: (B,) position ids of the first tokens that are written; without, every layer goes on
                behind the tokens that it has.
        """
        ids: list[list[int]] = [[] for _ in range(rows)]
        found: dict[int, tuple[Tensor, float]] = {}
        over: set[int] = set()
        for step in range(self.most):
            logits = self.head(states)
            # a state of no numbers ends its answer, and no mask comes of it
            sick = ~logits.isfinite().all(-1)
            chosen = logits.argmax(-1).masked_fill(sick, self.seg)
            said = log_probability(logits, self.seg)
            for row in range(rows):
                if row in over:
                    continue
                token = int(chosen[row])
                ids[row].append(token)
                if token == self.seg:
                    found.setdefault(row, (states[row], float(said[row])))
                if token in self.ends or bool(sick[row]) or (token == self.seg and not self.whole):
                    over.add(row)
            if len(over) == rows:
                break
            past = Past(past)
            places = None if first is None else (first + step)[:, None]
            entering = llama.embed_ids(self.llm, chosen[:, None])
            states = run_layers(self.llm, entering, past=past, positions=places).hidden[:, -1]
            past.before = None  # the latest keys and values hold all earlier ones, which would pile up
        return [
            Written(tuple(row), *found.get(number, (None, float("nan")))) for number, row in enumerate(ids)
        ]


def log_probability(logits: Tensor, token: int) -> Tensor:
    """(...,) float64 log-probability of a token by logits (..., vocabulary)."""
    wide = logits.double()  # a model that is sure has one that float32 rounds to 0
    return wide[..., token] - wide.logsumexp(-1)
