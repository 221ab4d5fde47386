"""What a pruner is told at a cut, against a plain computation: every signal, at the first cut and at the
second, of the faithful path and of the shared one, with shared keys, gaps, merged tokens and fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.contexts import Ask, Context, whole_positions
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past
from backbones.parts.shared import Shared
from pruners import CLS, POOLED, Cut, LayerPruner, LayerView, Selection
from pruners.views import (
    CUT_KINDS,
    LLM_ATTENTION,
    LLM_ATTENTION_AHEAD,
    LLM_KEYS,
    LLM_VALUES,
    Need,
    Query,
)
from tests.test_llama import model

BEFORE, PATCHES, BEHIND, FILL = 5, 12, 7, 3  # tokens of the sequence, fill besides
SENTENCE = 2  # of those behind the image, how many other rows have too
ANSWER = 2  # of those behind the image, how many are the forced answer's
CUTS = (Cut(2, 6), Cut(3, 3))
ORDERS = ([7, 2, 9, 0, 5, 11], [3, 0, 5])  # what stays at each, in no order
CLOSE = 1e-5  # norms are float32 in any precision


@dataclass(frozen=True)
class Reader(LayerPruner):
    """Reads everything, and leaves `ORDERS`; the last two tokens of each are merged."""

    placed: Literal["kept", "compact"] = "kept"
    merges: bool = False
    name = "reader"
    reference = "a test"
    needs = frozenset(map(Need, CUT_KINDS))

    @property
    def positions(self) -> Literal["kept", "compact"]:
        """As the parameter says."""
        return self.placed

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return CUTS

    def cut(self, tokens: LayerView, count: int) -> Selection:
        order = torch.tensor(ORDERS[tokens.number])
        if not self.merges:
            return Selection(order)
        features = torch.cat([tokens.hidden()[order[:-1]], tokens.hidden().mean(0, keepdim=True)])
        return Selection(torch.cat([order[:-1], torch.tensor([POOLED])]), features)


def questions() -> list[Query]:
    """All that can be asked."""
    found = [Query(Need(kind), of) for kind in CUT_KINDS[2:] for of in ("visual", "text")]  # type: ignore[arg-type]
    found += [Query(LLM_KEYS, of, rotary=False) for of in ("visual", "text")]  # type: ignore[arg-type]
    places = torch.tensor([BEFORE + 1, BEFORE, BEFORE + 5])
    found += [
        Query(need, of, rotary, softmax)
        for need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD)
        for of in ("last", "text", places)
        for rotary in (True, False)
        for softmax in (True, False)
    ]
    return found


# -- plainly


def normed(llm: LlamaModel, hidden: Tensor, weight: Tensor) -> Tensor:
    x = hidden.float()
    return weight * (x / (x.square().mean(-1, keepdim=True) + llm.config.rms_norm_eps).sqrt()).to(
        hidden.dtype
    )


def turn(states: Tensor, positions: Tensor) -> Tensor:
    """(H, L, d): the k-th and the (k + d/2)-th number are a point that turns by position / base^(2k/d)."""
    half = states.shape[-1] // 2
    angles = positions[:, None].float() * 10000 ** (-torch.arange(half).float() / half)
    points = torch.complex(states[..., :half], states[..., half:])
    points = points * torch.complex(angles.cos().double(), angles.sin().double())
    return torch.cat([points.real, points.imag], dim=-1)


def projected(llm: LlamaModel, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(H, L, d) queries, (H', L, d) keys and values, not turned."""
    weights = llm.layers[layer]
    x = normed(llm, hidden, weights.input_layernorm.weight)
    own = weights.self_attn
    return tuple(p(x).unflatten(-1, (-1, 16)).transpose(0, 1) for p in (own.q_proj, own.k_proj, own.v_proj))  # type: ignore[return-value]


def rows(llm: LlamaModel, layer: int, hidden: Tensor, positions: Tensor | None) -> Tensor:
    """(H, L, L) logits of all tokens; without positions nothing is turned."""
    query, key, _ = projected(llm, layer, hidden)
    if positions is not None:
        query, key = turn(query, positions), turn(key, positions)
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    ahead = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    return (query @ key.transpose(1, 2) / 4).masked_fill(ahead, -torch.inf)


def through(llm: LlamaModel, layer: int, hidden: Tensor, positions: Tensor) -> Tensor:
    """One layer, token by token of the whole sequence."""
    weights, (_, _, value) = llm.layers[layer], projected(llm, layer, hidden)
    value = value.repeat_interleave(4 // len(value), dim=0)
    mixed = rows(llm, layer, hidden, positions).softmax(-1) @ value
    hidden = hidden + weights.self_attn.o_proj(mixed.transpose(0, 1).flatten(1))
    x = normed(llm, hidden, weights.post_attention_layernorm.weight)
    return hidden + weights.mlp.down_proj(F.silu(weights.mlp.gate_proj(x)) * weights.mlp.up_proj(x))


@dataclass
class Plain:
    """The whole sequence of one row, with what is asked at a cut."""

    llm: LlamaModel
    pruner: Reader
    given: Tensor
    patches: Tensor
    positions: Tensor

    def run(self) -> tuple[list[dict[Any, Tensor]], Tensor, Tensor, Tensor]:
        """Answers at every cut; final states, position ids and patches."""
        self.hidden, self.count, found = self.given, len(self.patches), []
        for layer in range(4):
            if layer in (2, 3):
                self.layer = layer
                found.append({query.key: self.answer(query) for query in questions()})
                self.leave(torch.tensor(ORDERS[layer - 2]))
            self.entered = self.hidden
            self.hidden = through(self.llm, layer, self.hidden, self.positions)
        return found, normed(self.llm, self.hidden, self.llm.norm.weight), self.positions, self.patches

    def span(self, of: Any) -> Tensor:
        length = len(self.hidden)
        if isinstance(of, Tensor):
            return of
        return {
            "visual": torch.arange(BEFORE, BEFORE + self.count),
            "text": torch.arange(BEFORE + self.count, length),
            "last": torch.tensor([length - 1]),
        }[of]

    def answer(self, query: Query) -> Tensor:
        span, places = self.span(query.of), self.positions if query.rotary else None
        if query.need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD):
            ran = query.need == LLM_ATTENTION
            layer, states = (self.layer - 1, self.entered) if ran else (self.layer, self.hidden)
            logits = rows(self.llm, layer, states, places)[:, span]
            return logits.softmax(-1) if query.softmax else logits
        if query.need in (LLM_KEYS, LLM_VALUES):
            _, key, value = projected(self.llm, self.layer - 1, self.entered)
            if query.need == LLM_VALUES:
                return value[:, span]
            return (key if places is None else turn(key, places))[:, span]
        if query.need.kind == "llm_inputs":
            visual = slice(BEFORE, BEFORE + len(self.given) - BEFORE - BEHIND)
            return self.given[visual] if query.of == "visual" else self.given[-BEHIND:]
        if query.need.kind == "llm_rotary":
            angles = self.positions[span, None].float() * 10000 ** (-torch.arange(8).float() / 8)
            return torch.cat([angles.cos(), angles.sin()], dim=1).double()
        states = self.hidden[span]
        return states if query.need.kind == "llm_hidden" else normed(self.llm, states, self.llm.norm.weight)

    def leave(self, order: Tensor) -> None:
        visual = self.hidden[BEFORE : BEFORE + self.count]
        kept, patches = visual[order], self.patches[order]
        if self.pruner.merges:
            kept = torch.cat([kept[:-1], visual.mean(0, keepdim=True)])
            patches = torch.cat([patches[:-1], torch.tensor([POOLED])])
        stay = torch.cat([torch.arange(BEFORE), BEFORE + order, self.span("text")])
        self.positions = self.positions[stay]
        if self.pruner.positions == "compact":
            self.positions = torch.arange(len(stay))
        self.hidden = torch.cat([self.hidden[:BEFORE], kept, self.hidden[BEFORE + self.count :]])
        self.patches, self.count = patches, len(order)


# -- what the paths tell


def watching(pruner: Reader, told: list[dict[Any, Tensor]]) -> Cutting:
    """The pruner, and who writes down what it can see."""

    def choose(by: Any, tokens: LayerView, count: int) -> Selection:
        seen = {query.key: tokens.signal(query).clone() for query in questions()}
        told.append(seen | {"indices": tokens.indices, "positions": tokens.positions})
        for of, first in (("prompt", -1), ("question", 0)):
            rows, text = (tokens.attention(which, rotary=False) for which in (of, "text"))  # type: ignore[arg-type]
            torch.testing.assert_close(rows, text[:, :-ANSWER][:, first:], rtol=CLOSE, atol=CLOSE)
        assert tokens.question == slice(tokens.text.start, tokens.text.stop - ANSWER)
        assert tokens.hidden("question").equal(tokens.hidden("text")[:-ANSWER])
        assert tokens.rotary("question").equal(tokens.rotary("text")[:-ANSWER]) and tokens.grid == (3, 4)
        assert tokens.keys("question").equal(tokens.keys("text")[:, :-ANSWER])
        chosen: Selection = by.cut(tokens, count)
        return chosen

    return Cutting(pruner, CUTS, choose=choose, answer=ANSWER, grid=(3, 4))


def selections() -> dict[str, Context]:
    """Whole, chosen with gaps kept in no order, and chosen anew numbered, with tokens that are no patch."""
    some = torch.tensor([14, 3, 8, 5, 20, 1, 2, 9, 30, 11, 12, 25])
    odd = some.index_fill(0, torch.tensor([0]), CLS).index_fill(0, torch.tensor([4]), POOLED)
    return {"all": Context(torch.arange(PATCHES)), "kept": Context(some, some, 40), "compact": Context(odd)}


CASES = [
    ("all", Reader()),
    ("all", Reader("compact")),
    ("all", Reader("compact", True)),
    ("kept", Reader()),
    ("compact", Reader("compact", True)),
]


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("entering", "pruner"), CASES, ids=str)
@torch.inference_mode()
def test_every_signal_of_both_paths_is_the_plain_one(entering: str, pruner: Reader, key_heads: int) -> None:
    llm, context = model("sdpa", torch.float64, key_heads), selections()[entering]
    ids = torch.arange(BEFORE + BEHIND + FILL) % 40
    words, visual = llama.embed_ids(llm, ids), torch.randn(PATCHES, 64, dtype=torch.float64)
    sequence = torch.cat([words[:BEFORE], visual, words[BEFORE:]])
    places = whole_positions([context], BEFORE, BEHIND + FILL, torch.device("cpu"))
    length = len(sequence) - FILL
    plain = Plain(llm, pruner, sequence[:length], context.patches, places[0, :length])
    if entering == "kept":
        gaps = [*range(BEFORE), *(BEFORE + context.patches).tolist(), *range(45, 45 + BEHIND)]
        assert plain.positions.tolist() == gaps, "text goes on as if nothing had been pruned"
    wanted, final, ids_left, patches = plain.run()

    faithful: list[dict[Any, Tensor]] = []
    run = run_layers(
        llm,
        sequence[None],
        visual_start=BEFORE,
        visual_count=PATCHES,
        cuttings=[watching(pruner, faithful)],
        patches=context.patches[None],
        positions=places,
        last=torch.tensor([length - 1]),
    )
    torch.testing.assert_close(run.hidden[0, :-FILL], final, rtol=CLOSE, atol=CLOSE)
    assert run.positions[0, :-FILL].equal(ids_left) and run.patches[0].equal(patches)
    assert run.lengths == tuple(BEFORE + BEHIND + FILL + n for n in (12, 12, 6, 3))

    shared: list[dict[Any, Tensor]] = []
    read = (1, BEHIND - SENTENCE - 1)
    beginning, sentence, rest = (
        tuple(part.tolist()) for part in ids.split([BEFORE, SENTENCE, BEHIND - SENTENCE + FILL])
    )
    ask = Ask(0, beginning, sentence, rest, read[1], read, watching(pruner, shared))
    other = Ask(0, beginning, sentence, rest, read[1], read)
    answers = Shared(llm, 4, 4, {}).run(
        [context], lambda part: torch.stack([visual] * len(part)), [ask, other]
    )
    text = final[BEFORE + len(patches) :]
    torch.testing.assert_close(
        answers[0].hidden, text[[SENTENCE + place for place in read]], rtol=CLOSE, atol=CLOSE
    )
    assert answers[0].lengths == (12, 12, 6, 3) and answers[1].lengths == (12,) * 4
    assert answers[0].patches.equal(patches) and answers[1].patches.equal(context.patches)

    for told in (faithful, shared):
        assert len(told) == 2
        for seen, want in zip(told, wanted, strict=True):
            for key, value in want.items():
                torch.testing.assert_close(seen[key], value, rtol=CLOSE, atol=CLOSE, msg=str(key))
        assert told[0]["indices"].equal(context.patches) and told[0]["positions"].equal(places[0, :length])
        assert told[1]["positions"].shape == (BEFORE + 6 + BEHIND,)


@pytest.mark.parametrize("pruner", [Reader(), Reader("compact"), Reader("compact", True)], ids=str)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_tokens_decoded_behind_cuts_stand_where_a_longer_prompt_has_them(attn: str, pruner: Reader) -> None:
    """With gaps at the unpruned length in every layer; without, behind what each layer has."""
    llm = model(attn, torch.float64, 2)
    given = torch.randn(1, BEFORE + PATCHES + BEHIND + 2, 64, dtype=torch.float64)
    where: dict[str, Any] = {"visual_start": BEFORE, "visual_count": PATCHES, "cuttings": [_fixed(pruner)]}
    whole = run_layers(llm, given, **where)
    past, length = Past(), given.shape[1] - 2
    run_layers(llm, given[:, :length], **where, past=past)
    lengths = [past.layers[layer][0].shape[2] for layer in range(4)]
    assert lengths == [24, 24, 18, 15]
    for step in range(2):
        past = Past(past)
        first = length + step if pruner.positions == "kept" else None
        token = run_layers(llm, given[:, length + step, None], past=past, first_position=first)
        torch.testing.assert_close(token.hidden[0, 0], whole.hidden[0, step - 2], rtol=CLOSE, atol=CLOSE)
        assert token.positions.item() == (first if first is not None else lengths[-1] + step)


def _fixed(pruner: Reader) -> Cutting:
    """Merged tokens would differ in the last bits with the sequence's length; these do not."""
    return Cutting(pruner, CUTS, choose=lambda by, tokens, count: by.cut(tokens, count))


SICK: dict[str, Callable[[LayerView], Tensor]] = {
    "llm_attention": lambda tokens: tokens.attention("text")[:, -1, tokens.visual].mean(0),
    "llm_attention_ahead": lambda tokens: tokens.logits(ahead=True)[:, 0, tokens.visual].mean(0),
    "llm_hidden": lambda tokens: tokens.hidden()[:, 0],
}


@pytest.mark.parametrize("kind", SICK)
@torch.inference_mode()
def test_a_choice_by_what_are_no_numbers_is_said_and_made_for_its_row_alone(kind: str) -> None:
    """A pruner gets finite numbers, and no -inf but where a row does not look."""
    llm = model("sdpa", torch.float64, 2)
    given = torch.randn(2, BEFORE + PATCHES + BEHIND, 64, dtype=torch.float64)
    given[1, BEFORE + 3] = torch.nan
    seen: list[Tensor] = []

    def choose(by: Any, tokens: LayerView, count: int) -> Selection:
        seen.append(SICK[kind](tokens))
        return Selection(torch.arange(count))

    cuts = [Cutting(Reader(), CUTS[:1], choose=choose)] * 2
    run = run_layers(llm, given, visual_start=BEFORE, visual_count=PATCHES, cuttings=cuts)
    assert run.sound == (True, False)
    assert all(bool(one.isfinite().all()) for one in seen)
