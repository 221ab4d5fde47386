"""LISA as one writes it: which files, and what holds for every model of the family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from backbones.glamm.settings import GlammFamily, read_model
from backbones.registry import Finding, Runtime, Settings, register
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.costs import Shapes

NO_WEIGHTS = "The backbone lisa needs weights: give --checkpoint DIR or 'owner/name@revision'."


class LisaFamily(GlammFamily):
    """CLIP sees the centred square, Llama answers in the words of LISA, SAM segments."""

    protocols: ClassVar[Mapping[str, str]] = {
        "lisa": "every expression alone in one fixed wording, as officially",
        "each": "every expression alone, which is the same",
    }
    drawn = ()


@register
@dataclass(frozen=True)
class Lisa(LisaFamily, Settings):
    """LISA v1 from an official checkpoint.

    Attributes:
        checkpoint: its folder, or a hub name `owner/name@revision`.
        clip: CLIP's folder or hub name; by default the one that LISA was trained with.
        sam_dims: json file with the grounding encoder's numbers; by default the one beside config.json, else
            SAM ViT-H.
        template: of the conversation, "llava_v1" or "llava_llama_2".
    """

    checkpoint: str | None = None
    clip: str | None = None
    sam_dims: str | None = None
    template: str = "llava_v1"
    name = "lisa"
    reference = "LISA (Lai et al., CVPR 2024), https://arxiv.org/abs/2308.00692"

    def load(self, how: Runtime) -> Backbone:
        """The checkpoint with its CLIP."""
        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        from backbones.lisa.backbone import LisaBackbone
        from backbones.lisa.conversation import check_template

        files = self.checkpoint, self.clip, self.sam_dims
        return read_model(LisaBackbone, self, *files, how, template=check_template(self.template))

    def examine(self) -> Iterator[Finding]:
        """Key lists, shapes, configs and tokenizers; nothing is fetched."""
        from backbones.glamm.examine import examine_files
        from backbones.lisa.release import LISA

        return examine_files(self.checkpoint, self.clip, self.sam_dims, LISA)

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """The checkpoint's model on the meta device; of its files only configurations are read."""
        from backbones.glamm.full_size import of_folder
        from backbones.lisa.release import LISA
        from backbones.lisa.shapes import LisaShapes

        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        return LisaShapes(of_folder(self.checkpoint, self.clip, self.sam_dims, attn, LISA))


class _Numbers(LisaFamily, Settings):
    """A released model without its weights."""

    reference = Lisa.reference

    def load(self, how: Runtime) -> Backbone:
        """Refuse: there are no weights."""
        raise UserError(
            f"{self.name} is numbers alone, for python -m harness cost; to run it, give "
            "--backbones \"lisa(checkpoint='DIR')\" with the released weights."
        )

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """CLIP ViT-L/14 at 224 pixels, Llama and SAM ViT-H on the meta device."""
        from backbones.lisa.full_size import on_meta
        from backbones.lisa.shapes import LisaShapes

        return LisaShapes(on_meta(self.name, attn))


@register
@dataclass(frozen=True)
class Lisa7B(_Numbers):
    """The numbers of LISA-7B-v1 without its weights, to project costs."""

    name = "lisa-7b"


@register
@dataclass(frozen=True)
class Lisa13B(_Numbers):
    """The numbers of LISA-13B-llama2-v1 without its weights, to project costs."""

    name = "lisa-13b"
