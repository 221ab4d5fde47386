"""GLaMM as one writes it: which files, and what holds for every model of the family."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backbones.registry import ANSWERS, KINDS, POSITIONS, Family, Finding, Runtime, Settings, register
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.costs import Shapes
    from backbones.glamm.backbone import GlammBackbone

NO_WEIGHTS = (
    "The backbone glamm needs weights: give --checkpoint DIR or 'owner/name@revision', or use "
    "--backbones glamm-mini."
)


class GlammFamily(Family):
    """CLIP sees the centred square, Llama answers in the words of GLaMM-RefSeg, SAM segments."""

    signals = KINDS
    cuts_inside = True
    geometry = "centre-crop"
    protocols: ClassVar[Mapping[str, str]] = {
        "glamm": "up to three in one conversation, expressions and wordings drawn, as officially",
        "each": "every expression alone",
    }
    drawn: ClassVar[tuple[str, ...]] = ("glamm",)
    positions = POSITIONS
    answers = ANSWERS
    costs_by_default = "projected"


@register
@dataclass(frozen=True)
class Glamm(GlammFamily, Settings):
    """GLaMM-RefSeg from an official checkpoint.

    Attributes:
        checkpoint: its folder, or a hub name `owner/name@revision`.
        clip: CLIP's folder or hub name; by default the one that GLaMM was trained with.
        sam_dims: json file with the grounding encoder's numbers; by default the one beside config.json, else
            SAM ViT-H.
    """

    checkpoint: str | None = None
    clip: str | None = None
    sam_dims: str | None = None
    name = "glamm"
    reference = "GLaMM (Rasheed et al., CVPR 2024), https://arxiv.org/abs/2311.03356"

    def load(self, how: Runtime) -> Backbone:
        """The checkpoint with its CLIP."""
        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        from backbones.glamm.backbone import GlammBackbone

        return read_model(GlammBackbone, self, self.checkpoint, self.clip, self.sam_dims, how)

    def examine(self) -> Iterator[Finding]:
        """Key lists, shapes, configs and tokenizers; nothing is fetched."""
        from backbones.glamm.examine import examine_files
        from backbones.glamm.release import GLAMM

        return examine_files(self.checkpoint, self.clip, self.sam_dims, GLAMM)

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """The checkpoint's model on the meta device; of its files only configurations are read."""
        from backbones.glamm.full_size import of_folder
        from backbones.glamm.shapes import GlammShapes

        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        return GlammShapes(of_folder(self.checkpoint, self.clip, self.sam_dims, attn))


@register
@dataclass(frozen=True)
class Glamm7B(GlammFamily, Settings):
    """The numbers of the released GLaMM-RefSeg without its weights, to project costs."""

    name = "glamm-7b"
    reference = Glamm.reference

    def load(self, how: Runtime) -> Backbone:
        """Refuse: there are no weights."""
        raise UserError(
            "glamm-7b is numbers alone, for python -m harness cost; to run it, give "
            "--backbones \"glamm(checkpoint='DIR')\" with the released weights."
        )

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """CLIP ViT-L/14-336, Llama 7B and SAM ViT-H on the meta device."""
        from backbones.glamm.full_size import on_meta
        from backbones.glamm.shapes import GlammShapes

        return GlammShapes(on_meta(self.name, attn))


def read_model(
    kind: type[GlammBackbone],
    settings: Settings,
    checkpoint: str,
    clip: str | None,
    sam_dims: str | None,
    how: Runtime,
    **own: Any,
) -> Backbone:
    """Load a checkpoint.

    Args:
        kind: of a family's loaded models; its release says what the files are.
        settings: what the loaded backbone is called, and what it does by default.
        checkpoint, clip, sam_dims: as in `Glamm`.
        own: what this kind is made with, beside what all are.

    Raises:
        UserError: files are missing or unfit, or the model does not fit into the device.
    """
    import torch

    from backbones.glamm.checkpoint import load_checkpoint
    from backbones.glamm.sizes import sam_numbers
    from backbones.parts import reading
    from backbones.parts.tensor_parallel import mesh, split_layers
    from backbones.parts.tokenizer import LlamaTokenizer
    from backbones.parts.trained import untrained

    folder = reading.checkpoint_folder(checkpoint)
    sam = sam_numbers(folder, Path(sam_dims) if sam_dims is not None else None)
    tokenizer = LlamaTokenizer(folder)
    tower = reading.clip_folder(clip, kind.release)
    team = mesh(how.tensor_parallel, how.device) if how.tensor_parallel > 1 else None
    try:
        # a model that is shared is read into main memory, and each device gets its part
        first = "cpu" if team is not None else how.device
        model = load_checkpoint(
            folder,
            str(tower),
            dtype=getattr(torch, how.dtype),
            device=first,
            attn=how.attn,
            sam=sam,
            release=kind.release,
        )
        if team is not None:
            split_layers(model.language_model, team)
            model.to(how.device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model does not fit into {how.device} in {how.dtype}; give --dtype bfloat16 or another "
            f"--device."
        ) from error
    tokenizer.check(model.language_model.config.vocab_size)
    for part in untrained(model.learned()):
        print(
            f"{part} of {checkpoint!r} looks as it was made, not trained, and its masks are noise then; take "
            f"the {kind.release.title} release, or merge and save it again with all its parts",
            file=sys.stderr,
        )
    return kind(
        model,
        tokenizer,
        tower,
        name=settings.name,
        fingerprint=reading.weights_fingerprint(folder, tower, sam),
        device=how.device,
        dtype=how.dtype,
        attn=how.attn,
        batch_size=how.batch_size,
        image_backend=how.image_backend,
        costs_by_default=settings.costs_by_default,
        images_by_default=settings.images_by_default,
        **own,
    )
