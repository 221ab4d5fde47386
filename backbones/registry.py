"""Names to backbones: the built-in ones, entry points of installed packages, and plugin files.

A registered backbone is a frozen dataclass of settings, `glamm(checkpoint='DIR')`, which loads the model when
it is asked to. What holds for every model of a family is known before: see `Family`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from backbones.device import resolve
from backbones.parts.geometry import GEOMETRIES
from pruners.base import LAYER_KINDS, PLAIN_KINDS, Need, Pruner
from pruners.errors import UserError, nearest
from pruners.registration import Registry
from pruners.views import CUT_KINDS
from pruners.written import check_types, text_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backbones.base import Backbone
    from backbones.costs import Shapes

KINDS = frozenset((*LAYER_KINDS, *PLAIN_KINDS))  # of signals: all that a backbone can answer
DTYPES = ("float32", "bfloat16", "float16", "float64")
HALF = ("bfloat16", "float16")
IMAGE_BACKENDS = ("pil", "mmcv")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
POSITIONS = ("compact", "kept")
ANSWERS = ("forced", "generated")
COSTS = ("off", "projected", "measured")
Medium = Literal["image", "video"]
FACTS = (
    "name",
    "reference",
    "signals",
    "cuts_inside",
    "geometry",
    "medium",
    "protocols",
    "drawn",
    "positions",
    "answers",
    "costs_by_default",
    "images_by_default",
)


class UnknownProtocol(UserError):
    """A protocol that a backbone does not have."""


class Family:
    """What holds for every model of a family, loaded or not; settings and loaded backbones derive from it.

    Attributes:
        name: as one writes it; of the backbone's cells, too.
        signals: kinds of `pruners.Need` that it answers.
        cuts_inside: whether visual tokens can be cut between the layers of its language model.
        geometry: what it sees of a medium, one of `backbones.parts.geometry.GEOMETRIES`.
        medium: what it looks at, "image" or "video".
        protocols: how expressions become conversations: name to what it does, the official one first, which
            is the default.
        drawn: the protocols whose conversations follow from a seed.
        positions: position ids that it can give what a pruner lets in, of POSITIONS, the default first.
        answers: whether the answer with its [SEG] is "forced", which is given, or "generated" by the model:
            what it can do, the default first.
        costs_by_default: which costs a run gets where none are asked for, one of COSTS.
        images_by_default: images per split of a run that asks for none; 0 for all.
        pooled: patches that a token of the language model stands for at least: more than one where a grid is
            pooled behind the choice.
    """

    name: str
    signals: ClassVar[frozenset[str]] = frozenset()
    cuts_inside: ClassVar[bool] = False
    geometry: ClassVar[str] = "whole"
    medium: ClassVar[Medium] = "image"
    protocols: ClassVar[Mapping[str, str]] = {"each": "every expression alone"}
    drawn: ClassVar[tuple[str, ...]] = ()
    positions: ClassVar[tuple[str, ...]] = ("compact",)
    answers: ClassVar[tuple[str, ...]] = ("forced",)
    costs_by_default: str = "off"
    images_by_default: int = 0
    pooled: int = 1

    def lacks(self, pruner: Pruner) -> str:
        """Why a pruner cannot be served, in a sentence; empty if it can."""
        if pruner.stage != "tower" and not self.cuts_inside:
            return (
                f"{pruner.spec()} prunes inside the language model, where {self.name} has no layers to "
                f"cut between."
            )
        answered = {*self.signals, *CUT_KINDS}
        if absent := sorted(signal(need) for need in pruner.needs if need.kind not in answered):
            return f"{pruner.spec()} reads {', '.join(absent)}, which {self.name} cannot answer."
        return ""

    def stated(self, pruner: Pruner, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
        """Visual tokens of a view that every layer of the language model will see; what the pruner states,
        unless the model pools behind its choice.

        Raises:
            UserError: as `pruners.checks.stated`, or the model cannot take that many.
        """
        from pruners import checks

        return checks.stated(pruner, budget, patches, num_layers)

    def check_protocol(self, name: str) -> str:
        """The name, if it is a protocol of this family.

        Raises:
            UnknownProtocol: it is none.
        """
        if name not in self.protocols:
            raise UnknownProtocol(
                f"{self.name} has no protocol {name!r}, there are {', '.join(self.protocols)}."
                f"{nearest(name, self.protocols)}"
            )
        return name

    def check_can(self, what: str, asked: Iterable[str]) -> None:
        """Raise UserError unless it can do all that is asked of its `positions` or `answers`."""
        able: tuple[str, ...] = getattr(self, what)
        for one in asked:
            if one not in able:
                raise UserError(
                    f"{self.name} cannot run with --{what} {one}; give {' or '.join(able)}."
                    f"{nearest(one, able)}"
                )

    @property
    def facts(self) -> Mapping[str, str]:
        """What else changes its answers, in words for the tables, `{"placement": "grid"}`; nothing by
        default."""
        return {}

    def sent(self, budget: int) -> int:
        """Tokens of a view that enter the language model where a pruner leaves so many of them; by default
        those."""
        return budget

    def unlike(self, image: NDArray[np.uint8]) -> str | None:
        """What the model was trained on, in a sentence with the way to a fitting model, if an image is not of
        that kind; None if it is, or where the family does not tell, which is the default.

        Looks at pixels alone: no weights are loaded. Of a clip some frames are asked about, and the sentence
        is told if all of them have one.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        return None

    @property
    def protocol(self) -> str:
        """The official protocol."""
        return next(iter(self.protocols))


def signal(need: Need) -> str:
    """A signal in words: `keys[-1]`."""
    return need.kind + (f"[{need.layer}]" if need.layer is not None else "")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        level: "note" is worth knowing and no fault.
        what: what was found; a fault's sentence ends with what mends it.
    """

    level: Literal["ok", "note", "wrong"]
    what: str

    def __str__(self) -> str:
        return f"{self.level:<5}  {self.what}"


@dataclass(frozen=True)
class Runtime:
    """How a model runs, whatever it is.

    Attributes:
        device: "cpu", "cuda", "cuda:1", "mps"; all ways to write the CPU become "cpu", and "auto" the GPU
            where one works, else the CPU.
        dtype: of the weights, one of DTYPES.
        attn: attention implementation, one of ATTENTION.
        batch_size: most rows in one forward pass; results do not depend on it.
        image_backend: "pil", or "mmcv" for a faster grounding branch with the same pixels.
        tensor_parallel: processes that share one language model; a launcher has started them.

    Raises:
        UserError: a setting that does not exist, or a device that is not there.
    """

    device: str = "cpu"
    dtype: str = "float32"
    attn: str = "sdpa"
    batch_size: int = 16
    image_backend: str = "pil"
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        check_how(self.dtype, self.attn, self.image_backend)
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size} is too small; give 1 or more.")
        object.__setattr__(self, "device", resolve(self.device))
        _check_attention_on(self.device, self.attn, self.dtype)
        if self.image_backend == "mmcv" and find_spec("mmcv") is None:
            raise UserError(
                "--image-backend mmcv needs the package: pip install 'groundprune[mmcv]'; or give "
                "--image-backend pil."
            )
        if self.tensor_parallel < 1:
            raise UserError(f"--tensor-parallel {self.tensor_parallel} is too small; give 1 or more.")


def _choose(what: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise UserError(
            f"There is no {what} {value[:100]!r}; there are {', '.join(valid)}.{nearest(value, valid)}"
        )
    return value


def check_how(dtype: str, attn: str, image_backend: str) -> None:
    """See that there are such a precision, attention implementation and image backend.

    Raises:
        UserError: there is none.
    """
    _choose("dtype", dtype, DTYPES)
    check_attention(attn)
    _choose("image backend", image_backend, IMAGE_BACKENDS)


def check_attention(attn: str) -> str:
    """The name of an attention implementation, if it is one.

    Raises:
        UserError: it is none.
    """
    return _choose("attention implementation", attn, ATTENTION)


def _check_attention_on(device: str, attn: str, dtype: str) -> None:
    """Raise UserError if the device, or the precision, cannot run the attention implementation."""
    if attn != "flash_attention_2":
        return
    if find_spec("flash_attn") is None or not device.startswith("cuda"):
        raise UserError(
            "--attn flash_attention_2 needs a CUDA GPU and the package: pip install 'groundprune[flash]'; "
            "without them give --attn sdpa."
        )
    if dtype not in HALF:
        raise UserError(
            f"--attn flash_attention_2 does not compute in {dtype}; add --dtype bfloat16 or give --attn sdpa."
        )


@dataclass(frozen=True)
class Settings(Family, ABC):
    """What one writes of a backbone; the fields are its parameters.

    Attributes:
        reference: paper and link.

    Raises:
        UserError: a parameter is not of its annotated type.
    """

    reference: ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self)

    def spec(self) -> str:
        """The backbone as one writes it, defaults left out: `glamm(checkpoint='DIR')`."""
        return text_of(self)

    @abstractmethod
    def load(self, how: Runtime) -> Backbone:
        """The model, ready to ground.

        Raises:
            UserError: files are missing or unfit, or the model does not fit into the device.
        """

    def examine(self) -> Iterator[Finding]:
        """Look at the files that `load` would read, one finding each; nothing where there are none."""
        return iter(())

    def shapes(self, attn: str = "sdpa") -> Shapes | None:
        """The model without weights, for costs that follow from shapes alone; None where that is not known.

        Raises:
            UserError: files that hold its numbers are missing or unfit.
        """
        return None


class Backbones(Registry[Settings]):
    """All backbones."""

    what, base, home, group, facts = "backbone", Settings, "backbones", "groundprune.backbones", FACTS
    example = "\"glamm-mini,glamm(checkpoint='DIR')\""
    empty = "--backbones is empty; there are {names}."

    def wrong(self, cls: type[Settings]) -> str | None:
        """What is wrong with the facts of a family."""
        if not isinstance(cls.signals, frozenset) or cls.signals - KINDS:
            strange = sorted(map(str, set(cls.signals) - KINDS)) or [type(cls.signals).__name__]
            return f"answers {', '.join(strange)}; signals is a frozenset of {', '.join(sorted(KINDS))}"
        if cls.geometry not in GEOMETRIES:
            return f"has the geometry {cls.geometry!r}; there are {', '.join(GEOMETRIES)}"
        if not isinstance(cls.protocols, Mapping) or not cls.protocols:
            return "has no protocols; write protocols = {'each': 'every expression alone'}"
        if cls.medium not in ("image", "video"):
            return f"has the medium {cls.medium!r}; a medium is image or video"
        if set(cls.drawn) - set(cls.protocols):
            return (
                f"draws {', '.join(sorted(set(cls.drawn) - set(cls.protocols)))}, which is none of its "
                f"protocols"
            )
        for fact, known in (("positions", POSITIONS), ("answers", ANSWERS)):
            able = getattr(cls, fact)
            if not (isinstance(able, tuple) and able and set(able) <= set(known)):
                return f"has {fact} that are {able!r}; they are a tuple of {' or '.join(map(repr, known))}"
        if cls.costs_by_default not in COSTS:
            return f"has the costs {cls.costs_by_default!r} by default; there are {', '.join(COSTS)}"
        if type(cls.images_by_default) is not int or cls.images_by_default < 0:
            return f"has {cls.images_by_default!r} images by default; write a whole number, 0 for all"
        return None


BACKBONES = Backbones()
register, get, names, parse = BACKBONES.register, BACKBONES.get, BACKBONES.names, BACKBONES.parse
