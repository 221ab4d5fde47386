"""VideoGLaMM's modules: CLIP, InternVideo2, Phi-3 in Llama's layers, a segmenter; weights only, no data flow.

Source: VideoGLaMM (Munasinghe et al., CVPR 2025). Two adapters of two linear layers with a GELU lead from the
towers to the language model, and a head (`text_hidden_fcs`) from its state before [SEG] to the segmenter's
prompt space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import CLIPConfig, LlamaConfig, SamConfig

from backbones.parts import clip as clips
from backbones.parts import llama
from backbones.parts import sam as sams
from backbones.parts.internvideo2 import VideoEncoder, VideoNumbers

if TYPE_CHECKING:
    from backbones.parts.sam2 import Sam2Numbers


class VideoGlammModel(nn.Module):
    """The parts that referring segmentation in clips needs.

    Args:
        clip: vision tower, text tower and both projections (the text side serves text-guided pruners).
        video: the video encoder.
        llm: the language model.
        segmenter: of SAM, which sees frames alone, or of SAM2.
        attn: attention implementation of all ("eager", "sdpa", "flash_attention_2").

    Attributes:
        projector: the adapter from CLIP.
        video_projector: the adapter from the video encoder.
    """

    def __init__(
        self,
        clip: CLIPConfig,
        video: VideoNumbers,
        llm: LlamaConfig,
        segmenter: SamConfig | Sam2Numbers,
        attn: str = "sdpa",
    ) -> None:
        super().__init__()
        self.clip = clips.build_clip(clip, attn)
        self.video_tower = VideoEncoder(video, attn)
        self.language_model = llama.build_llama(llm, attn)
        self.grounding_encoder: Any
        if isinstance(segmenter, SamConfig):
            self.grounding_encoder = sams.build_sam(segmenter, attn)
            prompts: Any = segmenter.prompt_encoder_config
            prompt = prompts.hidden_size
        else:
            from backbones.parts.sam2 import build_sam2

            self.grounding_encoder, prompt = build_sam2(segmenter, attn), segmenter.width
        width, vision = llm.hidden_size, clip.vision_config
        self.projector = _adapter(vision.hidden_size, width)  # type: ignore[union-attr]
        self.video_projector = _adapter(video.width, width)
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt))
        self.lm_head = nn.Linear(width, llm.vocab_size, bias=False)

    @property
    def tracks(self) -> bool:
        """Whether its segmenter is SAM2, which can follow an object through a clip."""
        return hasattr(self.grounding_encoder, "memory_attention")

    def learned(self) -> dict[str, nn.Module]:
        """The parts without which a model of sound towers segments nothing, as messages name them."""
        decoder: nn.Module = self.grounding_encoder.mask_decoder
        return {
            "the adapter of CLIP (image_mm_projector)": self.projector,
            "the adapter of the video encoder (mm_projector)": self.video_projector,
            "the [SEG] head (text_hidden_fcs)": self.text_hidden_fcs,
            "the mask decoder": decoder,
        }


def _adapter(own: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(own, width), nn.GELU(), nn.Linear(width, width))
