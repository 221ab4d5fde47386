"""Continuous batching over our own decoder: requests arrive, are prefilled together, and write one token each
per iteration beside all others that run.

An iteration admits what waits, up to so many: images through the vision tower together, a choice of tokens
for each, one prefill, cut inside the language model where the method does so. Then every running sequence
writes a token in one decode step. Sequences of any lengths run together, since what is behind a row's end is
masked; behind a cut every layer has its own lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.costs import Shape
from backbones.glamm.model import GlammModel
from backbones.glamm.stages import GlammInputs, visual_tokens
from backbones.parts import clip, llama
from backbones.parts.attention import for_queries
from backbones.parts.contexts import context_of, whole_positions
from backbones.parts.cuts import cutting
from backbones.parts.faithful import LayerRun, Stage, run_layers
from backbones.parts.llama import Past
from harness.cost.formulas import layer_macs
from pruners import checks
from pruners.base import TEXT_EMBEDS, Pruner
from tests.bench.drawn import Request

BUCKET = 64  # keys that a decode step looks at are so many, or a multiple: few shapes, as graphs want them


@dataclass(frozen=True)
class Served:
    """How a server prunes.

    Attributes:
        budget: visual tokens, as the pruner counts them.
        patches: visual tokens of an image.
    """

    pruner: Pruner
    budget: int
    patches: int

    def schedule(self, layers: int) -> tuple[int, ...]:
        """Visual tokens that every layer sees, as the pruner states them."""
        return self.pruner.schedule(self.budget, self.patches, layers)

    def macs(self, request: Request, shape: Shape) -> int:
        """Multiply-adds of the decoder layers for one request, as its pruner states them: of the prompt,
        and of every token but the last, behind which nothing is written."""
        lengths = [count + request.text for count in self.schedule(shape.layers)]
        written = range(1, request.new)
        return sum(
            layer_macs(length, length, shape) + sum(layer_macs(1, length + k, shape) for k in written)
            for length in lengths
        )


# -- prefill


@dataclass(frozen=True)
class Prefilled:
    """A batch of prompts behind the last layer.

    Attributes:
        states: (B, width) final states of the last prompt tokens.
        past: keys and values of all layers, fill behind the rows included.
        run: of the layers.
        follows: position ids of what comes next, row by row, where tokens keep theirs.
    """

    states: Tensor
    past: Past
    run: LayerRun
    follows: tuple[int, ...]


@torch.inference_mode()
def prefilled(
    model: GlammModel,
    requests: Sequence[Request],
    served: Served,
    stage: Stage = nullcontext,
    checked: bool = False,
) -> Prefilled:
    """Images and prompts of several requests together; shorter prompts have fill behind them.

    Args:
        stage: entered around "vision", "text", "pruner", "projector" and "prefill", and inside the last
            around "pruner" again.
        checked: whether choices are looked at, as they are before clocks run.
    """
    pruner, llm, device = served.pruner, model.language_model, requests[0].pixels.device
    layers = llm.config.num_hidden_layers
    side = model.clip.config.vision_config.image_size // model.clip.config.vision_config.patch_size
    with stage("vision"):
        states = clip.hidden_states(model.clip, torch.stack([one.pixels for one in requests]))
    text = None
    if TEXT_EMBEDS in pruner.needs:
        with stage("text"):
            words = torch.stack([one.words for one in requests])
            text = clip.embed_text(model.clip, {"input_ids": words, "attention_mask": torch.ones_like(words)})
    features, contexts = [], []
    with stage("pruner"):
        for k, one in enumerate(requests):
            own = text[k : k + 1] if text is not None else None
            view = visual_tokens(model, _inputs(one, side), tuple(state[k] for state in states), own)
            chosen = checks.select_views(pruner, [view], served.budget, layers, checked)
            features.append(chosen[0].gather(view) if chosen else view.patches)
            contexts.append(context_of(pruner, chosen, served.patches))
    with stage("projector"):
        visual = model.projector(torch.stack(features).to(requests[0].pixels.dtype))
    longest = max(len(one.after) for one in requests)
    after = torch.stack([F.pad(one.after, (0, longest - len(one.after))) for one in requests])
    before = torch.stack([one.before for one in requests])
    start, count = before.shape[1], visual.shape[1]
    choose = partial(checks.cut, checked=checked)
    cuts = [
        cutting(pruner, served.budget, served.patches, layers, _name(one), choose, 0, (side, side))
        for one in requests
    ]
    past, fill = Past(), [longest - len(one.after) for one in requests]
    with stage("prefill"):
        run = run_layers(
            llm,
            torch.cat([llama.embed_ids(llm, before), visual, llama.embed_ids(llm, after)], dim=1),
            visual_start=start,
            visual_count=count,
            cuttings=[cut for cut in cuts if cut is not None],
            patches=torch.stack([context.patches.to(device) for context in contexts]),
            positions=whole_positions(contexts, start, longest, device),
            past=past,
            last=torch.tensor([start + count + len(one.after) - 1 for one in requests], device=device),
            stage=stage,
        )
    checks.lengths(pruner, served.budget, served.patches, [n - start - longest for n in run.lengths])
    last = torch.tensor([run.lengths[-1] - 1 - empty for empty in fill], device=device)
    rows = torch.arange(len(requests), device=device)
    follows = run.positions[rows, last] + 1
    return Prefilled(run.hidden[rows, last], past, run, tuple(follows.tolist()))


def _name(one: Request) -> str:
    return f"request {one.number}"


def _inputs(one: Request, side: int) -> GlammInputs:
    """A request as pruners are shown it; the grounding branch is not served."""
    small, size = one.pixels[None], (one.pixels.shape[-1],) * 2
    words = one.words[None]
    return GlammInputs(
        small,
        small,
        size,  # type: ignore[arg-type]
        size,  # type: ignore[arg-type]
        one.before[None],
        one.after[None],
        (-1,),
        {"input_ids": words, "attention_mask": torch.ones_like(words)},
        (side, side),
        sample=_name(one),
        asked=one.after,
    )


# -- decoding


@dataclass
class Running:
    """A request on its way.

    Attributes:
        sent, first, done: when it was sent, had its first token, and its last.
        ids: the tokens that are written.
        follows: position id of the first of them, where tokens keep theirs.
        prompt: lengths that the layers saw of its prompt.
    """

    request: Request
    sent: float
    first: float = 0.0
    done: float = 0.0
    ids: list[int] = field(default_factory=list)
    follows: int = 0
    prompt: tuple[int, ...] = ()


class Cache:
    """Keys and values of running sequences: one row each, rows in use first.

    Args:
        capacities: most tokens of a row, layer by layer.
    """

    def __init__(self, llm: llama.LlamaModel, slots: int, capacities: Sequence[int]) -> None:
        config, weight = llm.config, llm.embed_tokens.weight
        head, heads = llama.Layer(llm, 0).head, config.num_key_value_heads or config.num_attention_heads
        self.keys, self.values = (
            [
                torch.zeros(slots, heads, most, head, dtype=weight.dtype, device=weight.device)
                for most in capacities
            ]
            for _ in range(2)
        )

    def put(self, row: int, past: Past, of: int, lengths: Sequence[int]) -> None:
        """Row `of` of a prefilled batch becomes `row`."""
        for layer, length in enumerate(lengths):
            key, value = past.layers[layer]
            self.keys[layer][row, :, :length] = key[of, :, :length]
            self.values[layer][row, :, :length] = value[of, :, :length]

    def move(self, row: int, to: int, lengths: Sequence[int]) -> None:
        """A row into the place of one that has gone."""
        for layer, length in enumerate(lengths):
            for part in (self.keys[layer], self.values[layer]):
                part[to, :, :length] = part[row, :, :length]


class Server:
    """One model behind one pruner.

    Args:
        slots: sequences that run at once.
        admit: requests that are prefilled together, at most.
        longest: most text tokens of a prompt and most tokens of an answer.
        stage: as of `prefilled`, and "decode".
        checked: as of `prefilled`.
    """

    def __init__(
        self,
        model: GlammModel,
        served: Served,
        slots: int,
        longest: tuple[int, int],
        admit: int = 4,
        stage: Stage = nullcontext,
        checked: bool = False,
    ) -> None:
        llm = model.language_model
        if llama.Layer(llm, 0).window is not None:
            raise ValueError("a sliding window is not served")
        self.model, self.served, self.slots, self.admit = model, served, slots, admit
        self._stage, self._checked = stage, checked
        self.schedule = served.schedule(llm.config.num_hidden_layers)
        self.cache = Cache(llm, slots, [_bucketed(count + sum(longest)) for count in self.schedule])
        self._kept = served.pruner.positions_for("compact") == "kept"
        self.running: list[Running] = []

    def iterate(self, waiting: deque[Running], clock: Callable[[], float]) -> list[Running]:
        """Admit what fits, write a token of every sequence, and give back those that are finished."""
        count = min(self.admit, self.slots - len(self.running), len(waiting))
        if count:
            self._enter([waiting.popleft() for _ in range(count)])
            now = clock()
            for one in self.running[-count:]:
                one.first = now
        if any(len(one.ids) < one.request.new for one in self.running):
            with self._stage("decode"):
                self._write()
        finished, now = [], clock()
        for row in reversed(range(len(self.running))):
            if len(self.running[row].ids) >= self.running[row].request.new:
                finished.append(self._leave(row))
                finished[-1].done = now
        return sorted(finished, key=lambda one: one.request.number)

    def _enter(self, new: Sequence[Running]) -> None:
        """Prefill requests; each has its first token then."""
        found = prefilled(self.model, [one.request for one in new], self.served, self._stage, self._checked)
        with self._stage("decode"):
            first = self.model.lm_head(found.states).argmax(-1).tolist()
            for k, one in enumerate(new):
                one.prompt = tuple(count + one.request.text for count in self.schedule)
                one.ids, one.follows = [first[k]], found.follows[k]
                self.cache.put(len(self.running), found.past, k, one.prompt)
                self.running.append(one)

    def _leave(self, row: int) -> Running:
        """Take a sequence out; the last one takes its row."""
        gone, last = self.running[row], self.running.pop()
        if last is not gone:
            self.cache.move(len(self.running), row, [n + len(last.ids) - 1 for n in last.prompt])
            self.running[row] = last
        return gone

    @torch.inference_mode()
    def _write(self) -> None:
        """One token of every running sequence."""
        llm, device = self.model.language_model, self.model.lm_head.weight.device
        entering = torch.tensor([[one.ids[-1]] for one in self.running], device=device)
        hidden = llama.embed_ids(llm, entering)
        seen: tuple[int, ...] = ()
        for layer in llama.layers(llm):
            ends = tuple(one.prompt[layer.index] + len(one.ids) - 1 for one in self.running)
            if ends != seen:  # layers between two cuts have one length
                seen, places = ends, torch.tensor(ends, device=device)
                most = _bucketed(max(ends) + 1)
                shown = (torch.arange(most, device=device) <= places[:, None])[:, None, None]
                follow = places
                if self._kept:
                    follow = torch.tensor(
                        [one.follows + len(one.ids) - 1 for one in self.running], device=device
                    )
                by = llama.rotary(llm, follow[:, None], hidden.dtype)
            hidden = self._through(layer, hidden, by, places, shown)
        ids = self.model.lm_head(llama.norm(llm, hidden)[:, -1]).argmax(-1).tolist()
        for one, token in zip(self.running, ids, strict=True):
            one.ids.append(token)

    def _through(
        self, layer: llama.Layer, hidden: Tensor, by: llama.Rotary, places: Tensor, shown: Tensor
    ) -> Tensor:
        """One layer over (B, 1, width), each token behind its own row's `places` (B,).

        Args:
            shown: (B, 1, 1, K) keys that a token looks at.
        """
        query, key, value = layer.project(hidden, by)
        rows, heads, most = torch.arange(len(hidden), device=hidden.device), query.shape[1], shown.shape[-1]
        keys, values = self.cache.keys[layer.index], self.cache.values[layer.index]
        keys[rows, :, places], values[rows, :, places] = key[:, :, 0], value[:, :, 0]
        key, value = (for_queries(one[: len(rows), :, :most], heads) for one in (keys, values))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=shown, scale=layer.head**-0.5)
        return layer.finish(hidden, mixed.transpose(1, 2).flatten(2))


def _bucketed(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


# -- clients


def closed_loop(
    server: Server, draw: Callable[[int], Request], clients: int, answers: int, clock: Callable[[], float]
) -> list[Running]:
    """Clients that each send the next request when the last one is answered, until there are so many answers.

    Which requests share an iteration follows from their lengths alone, whatever the clock says.
    """
    waiting: deque[Running] = deque()
    sent = 0
    done: list[Running] = []

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            waiting.append(Running(draw(sent), clock()))
            sent += 1

    send(clients)
    while len(done) < answers:
        finished = server.iterate(waiting, clock)
        done += finished
        send(len(finished))
    return done
