"""What a pruner sees: a view of the vision tower's tokens, or the sequence at a cut inside the language
model.

Both answer lazily: a signal is computed when it is read, and only if the pruner's `needs` declare it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from pruners.errors import Fault, UndeclaredNeed

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as DType


@dataclass(frozen=True)
class Need:
    """One signal of the backbone.

    Of a vision tower's layer (-1 the last, -2 the one whose output the projector gets; or a Fraction, that
    share of the depth: Fraction(9, 24) is the ninth of 24 layers and the second of five; H heads, C channels,
    N patches, and the class token first, where the tower has one: N+1 below):
        cls_attention: (H, N+1) softmax of the class token's row over all tokens.
        cls_query: (C,) query projection of the class token, with bias, unscaled, heads concatenated.
        keys, values: (N+1, C) key and value projections of all tokens.
        attention: (H, N+1, N+1) softmax of every token's row over all tokens.
        received_attention: (H, N+1) what every token gets of it: the mean of the rows of `attention`.
        hidden: (N+1, C) output of the layer.
    Of an image and its questions, without a layer:
        projected_patches: (N, P) patches through post_layernorm and visual_projection, not normalised.
        text_embeds: (M, P) CLIP text embeddings of the conversation's M questions, not normalised.
        referent: (N,) share of each patch that the truth masks cover; for controls that may see the truth.
        llm_patches: (N, width) patches behind the projector, as they would enter the language model.
        llm_text_embeds: (W, width) what the questions' tokens enter the language model as.
    Of the language model at a cut, without a layer, since each is that of the cut (`LayerView` has the
    shapes):
        llm_attention: attention rows of the layer that has just run.
        llm_attention_ahead: attention rows with the weights of the layer that has not run yet.
        llm_keys, llm_values: of the layer that has just run.
        llm_hidden: what enters the layer that has not run yet.
        llm_normed: the same through the norm that stands behind the last layer.
        llm_inputs: what entered the first layer.
        llm_rotary: the angles by which queries and keys are turned.
    """

    kind: str
    layer: int | Fraction | None = None

    def index(self, depth: int) -> int:
        """The layer's index, from 0 on, in a tower of so many layers.

        Example:
            >>> Need("received_attention", Fraction(9, 24)).index(24), Need("keys", -2).index(24)
            (8, 22)
        """
        if isinstance(self.layer, Fraction):
            return max(1, round(self.layer * depth)) - 1
        if self.layer is None:
            raise ValueError(f"{self} is of no layer")
        return self.layer % depth

    def named(self, depth: int) -> Need:
        """The same signal by its layer's index in a tower of so many layers: written in other words it is no
        other.

        Example:
            >>> Need("hidden", Fraction(23, 24)).named(5) == Need("hidden", -1).named(5) == Need("hidden", 4)
            True
        """
        return self if self.layer is None else Need(self.kind, self.index(depth))


PROJECTED_PATCHES, TEXT_EMBEDS, REFERENT = Need("projected_patches"), Need("text_embeds"), Need("referent")
LLM_PATCHES, LLM_TEXT_EMBEDS = Need("llm_patches"), Need("llm_text_embeds")
LLM_ATTENTION, LLM_ATTENTION_AHEAD = Need("llm_attention"), Need("llm_attention_ahead")
LLM_KEYS, LLM_VALUES, LLM_HIDDEN = Need("llm_keys"), Need("llm_values"), Need("llm_hidden")
LLM_NORMED, LLM_INPUTS, LLM_ROTARY = Need("llm_normed"), Need("llm_inputs"), Need("llm_rotary")
LAYER_KINDS = (
    "cls_attention",
    "cls_query",
    "keys",
    "values",
    "attention",
    "received_attention",
    "hidden",
)
PLAIN_KINDS = tuple(
    need.kind for need in (PROJECTED_PATCHES, TEXT_EMBEDS, REFERENT, LLM_PATCHES, LLM_TEXT_EMBEDS)
)
CUT_KINDS = tuple(
    need.kind
    for need in (
        LLM_ATTENTION,
        LLM_ATTENTION_AHEAD,
        LLM_KEYS,
        LLM_VALUES,
        LLM_HIDDEN,
        LLM_NORMED,
        LLM_INPUTS,
        LLM_ROTARY,
    )
)
# signals by which conversations about one image differ: a choice that reads none of them is made once for all
PER_TEXT = frozenset({TEXT_EMBEDS, REFERENT, LLM_TEXT_EMBEDS})


def _declared(need: Need, needs: frozenset[Need] | None) -> None:
    """Raise UndeclaredNeed unless a signal is among the needs; None declares all."""
    if needs is not None and need not in needs:
        declared = ", ".join(sorted(map(str, needs))) or "nothing"
        raise UndeclaredNeed(f"reads {need}, which its `needs` do not declare; they declare {declared}")


class View:
    """One grid of patches as a tower-stage pruner sees it: of an image, a tile, a frame.

    Args:
        patches: (N, C) features that the projector would get, raster order.
        cls: (C,) the class token beside them; None for a tower that has none.
        grid: rows and columns, N = rows * columns.
        num_heads: attention heads of the vision tower.
        answer: computes a declared signal.
        sample: stable id of the image and expression, the seed of random draws.
        declared: the signals that may be read; None allows all.
        number, of: which of how many views of its sample this is.
        region: top, left, bottom and right edge of what the grid covers of the raw medium, as shares of its
            height and width: within 0..1 behind a central crop, beyond it where padding is seen.
    """

    def __init__(
        self,
        patches: Tensor,
        cls: Tensor | None,
        grid: tuple[int, int],
        num_heads: int,
        answer: Callable[[Need], Tensor],
        sample: str = "",
        declared: frozenset[Need] | None = None,
        *,
        number: int = 0,
        of: int = 1,
        region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    ) -> None:
        self.patches, self.cls, self.grid, self.num_heads, self.sample = patches, cls, grid, num_heads, sample
        self.number, self.of, self.region = number, of, region
        self._answer, self._declared = answer, declared

    def __len__(self) -> int:
        return len(self.patches)

    def only(self, needs: frozenset[Need]) -> View:
        """The same view, answering nothing but `needs`."""
        return View(
            self.patches,
            self.cls,
            self.grid,
            self.num_heads,
            self._answer,
            self.sample,
            needs,
            number=self.number,
            of=self.of,
            region=self.region,
        )

    def signal(self, need: Need) -> Tensor:
        """The signal, or UndeclaredNeed if the pruner did not declare it."""
        _declared(need, self._declared)
        return self._answer(need)

    def cls_attention(self, layer: int | Fraction) -> Tensor:
        """(H, N+1) attention row of the class token."""
        return self.signal(Need("cls_attention", layer))

    def cls_query(self, layer: int | Fraction) -> Tensor:
        """(C,) query of the class token."""
        return self.signal(Need("cls_query", layer))

    def keys(self, layer: int | Fraction) -> Tensor:
        """(N+1, C) keys."""
        return self.signal(Need("keys", layer))

    def values(self, layer: int | Fraction) -> Tensor:
        """(N+1, C) values."""
        return self.signal(Need("values", layer))

    def attention(self, layer: int | Fraction) -> Tensor:
        """(H, N+1, N+1) attention map."""
        return self.signal(Need("attention", layer))

    def received_attention(self, layer: int | Fraction) -> Tensor:
        """(H, N+1) mean of the map's rows."""
        return self.signal(Need("received_attention", layer))

    def hidden(self, layer: int | Fraction) -> Tensor:
        """(N+1, C) output of a layer."""
        return self.signal(Need("hidden", layer))

    @property
    def projected_patches(self) -> Tensor:
        """(N, P) patches in the space that CLIP shares with text."""
        return self.signal(PROJECTED_PATCHES)

    @property
    def text_embeds(self) -> Tensor:
        """(M, P) text embeddings."""
        return self.signal(TEXT_EMBEDS)

    @property
    def referent(self) -> Tensor:
        """(N,) share of each patch inside the truth."""
        return self.signal(REFERENT)

    @property
    def llm_patches(self) -> Tensor:
        """(N, width) patches behind the projector."""
        return self.signal(LLM_PATCHES)

    @property
    def llm_text_embeds(self) -> Tensor:
        """(W, width) question tokens as the language model embeds them."""
        return self.signal(LLM_TEXT_EMBEDS)


VisualTokens = View  # its name before an image could have several

Side = Literal["visual", "text", "question"]
Rows: TypeAlias = "Literal['last', 'prompt', 'text', 'question'] | Tensor"


@dataclass(frozen=True, eq=False)
class Query:
    """One question to the sequence at a cut.

    Attributes:
        need: what is asked for.
        of: the tokens: "visual", "text", "last", or their places in the sequence.
        rotary: whether queries and keys are turned to their positions.
        softmax: whether attention rows are probabilities.
    """

    need: Need
    of: Side | Rows
    rotary: bool = True
    softmax: bool = True

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal questions."""
        of = self.of if isinstance(self.of, str) else tuple(self.of.tolist())
        return self.need.kind, of, self.rotary, self.softmax


class LayerView:
    """One row's sequence at a cut inside the language model: s tokens before the image, the n visual tokens
    that are there, and the T text tokens behind them; K = s + n + T.

    Text is the whole conversation behind the image, forced answers included; the question, of Q tokens, is
    what of it stands before the last answer, so that it ends with the last prompt token. Fill is never seen.
    H query heads and H' key heads of width d.

    Args:
        layer: index of the layer that has not run: the first one that sees fewer visual tokens.
        number: of the cut, 0 for the first.
        indices: (n,) the patch of each visual token, or CLS or POOLED for one that is no single patch.
        positions: (K,) position ids of the sequence.
        start: s.
        width, dtype: of what runs through the language model.
        answer: computes the answer to a query.
        sample: stable id of the image, the seed of random draws.
        declared: the signals that may be read; None allows all.
        asked: tokens of the sequence up to the end of the question; by default all K.
        grid: rows and columns of the patches of a view, if the backbone tells it.
    """

    def __init__(
        self,
        layer: int,
        number: int,
        indices: Tensor,
        positions: Tensor,
        start: int,
        width: int,
        dtype: DType,
        answer: Callable[[Query], Tensor],
        sample: str = "",
        declared: frozenset[Need] | None = None,
        asked: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.layer, self.number, self.sample = layer, number, sample
        self.asked = len(positions) if asked is None else asked
        self.indices, self.positions, self.start = indices, positions, start
        self.width, self.dtype = width, dtype
        self._answer, self._declared, self._grid = answer, declared, grid

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of a view; `indices` count on from view to view.

        Raises:
            Fault: the backbone does not say.
        """
        if self._grid is None:
            raise Fault("asks for the grid of patches, which this backbone does not tell at a cut")
        return self._grid

    @property
    def visual(self) -> slice:
        """Where the visual tokens stand in the sequence: their columns in attention rows."""
        return slice(self.start, self.start + len(self))

    @property
    def text(self) -> slice:
        """Where the text behind them stands."""
        return slice(self.start + len(self), len(self.positions))

    @property
    def question(self) -> slice:
        """Where the question stands."""
        return slice(self.start + len(self), self.asked)

    def only(self, needs: frozenset[Need]) -> LayerView:
        """The same sequence, answering nothing but `needs`."""
        return self.answered_by(self._answer, declared=needs)

    def answered_by(
        self,
        answer: Callable[[Query], Tensor],
        indices: Tensor | None = None,
        positions: Tensor | None = None,
        declared: frozenset[Need] | None = None,
    ) -> LayerView:
        """The same sequence with other answers; arguments are those of the class, None leaves them."""
        return LayerView(
            self.layer,
            self.number,
            self.indices if indices is None else indices,
            self.positions if positions is None else positions,
            self.start,
            self.width,
            self.dtype,
            answer,
            self.sample,
            declared,
            self.asked,
            self._grid,
        )

    def signal(self, query: Query) -> Tensor:
        """The answer to a query, or UndeclaredNeed if the pruner did not declare the signal."""
        _declared(query.need, self._declared)
        return self._answer(query)

    def attention(self, of: Rows = "last", *, ahead: bool = False, rotary: bool = True) -> Tensor:
        """(H, R, K) attention rows: softmax over all keys up to the row's own token, 0 behind it.

        Args:
            of: "last" for the sequence's last token (R = 1), which belongs to a forced answer; "prompt" for
                the last one before the last answer (R = 1); "text" for all T behind the image, "question" for
                Q; or (R,) int64 places of tokens in the sequence, from the image on.
            ahead: with the weights of the layer that has not run yet, on what enters it
                (`LLM_ATTENTION_AHEAD`); otherwise of the layer that has just run (`LLM_ATTENTION`).
            rotary: False compares queries and keys that are not turned to their positions.
        """
        return self._attended(of, ahead, rotary, softmax=True)

    def logits(self, of: Rows = "last", *, ahead: bool = False, rotary: bool = True) -> Tensor:
        """(H, R, K) what `attention` is the softmax of, q k / sqrt(d); -inf behind the row's own token."""
        return self._attended(of, ahead, rotary, softmax=False)

    def _attended(self, of: Rows, ahead: bool, rotary: bool, softmax: bool) -> Tensor:
        """Attention rows, or Fault if a row's token is not among those that are known."""
        need = LLM_ATTENTION_AHEAD if ahead else LLM_ATTENTION
        if of == "question":
            rows = self.signal(Query(need, "text", rotary, softmax))
            return rows[:, : self.asked - self.text.start]
        if of == "prompt":
            of = self.indices.new_tensor([self.asked - 1])
        elif not isinstance(of, str):
            for place in of.tolist():
                if not self.start <= place < len(self.positions):
                    raise Fault(
                        f"asks for the attention row of token {place} where {self.start} to "
                        f"{len(self.positions) - 1} are the image's and those behind it"
                    )
        return self.signal(Query(need, of, rotary, softmax))

    def _side(self, need: Need, of: Side, rotary: bool = True) -> Tensor:
        """What the tokens of one side have; tokens are the last dimension but one."""
        if of != "question":
            return self.signal(Query(need, of, rotary))
        return self.signal(Query(need, "text", rotary))[..., : self.asked - self.text.start, :]

    def keys(self, of: Side = "visual", *, rotary: bool = True) -> Tensor:
        """(H', n, T or Q, d) keys of the layer that has just run."""
        return self._side(LLM_KEYS, of, rotary)

    def values(self, of: Side = "visual") -> Tensor:
        """(H', n, T or Q, d) values of the layer that has just run."""
        return self._side(LLM_VALUES, of)

    def hidden(self, of: Side = "visual") -> Tensor:
        """(n, T or Q, width) what enters the layer that has not run yet."""
        return self._side(LLM_HIDDEN, of)

    def normed(self, of: Side = "visual") -> Tensor:
        """(n, T or Q, width) `hidden` through the norm behind the last layer."""
        return self._side(LLM_NORMED, of)

    def inputs(self, of: Side = "visual") -> Tensor:
        """(E, T or Q, width) what entered the first layer: all E visual tokens, whatever was cut since, or
        text."""
        return self._side(LLM_INPUTS, of)

    def rotary(self, of: Side = "visual") -> Tensor:
        """(n, T or Q, d) cosines, then sines, of the d / 2 angles by which a token's queries and keys are
        turned to its position."""
        return self._side(LLM_ROTARY, of)
