"""GLaMM's modules, and LISA's, assembled from transformers' CLIP, Llama and SAM; weights only, no data flow.

Sources: LISA (Lai et al., CVPR 2024), GLaMM (Rasheed et al., CVPR 2024). What they add to the three published
models is a projector from the vision tower to the language model (one linear layer in LISA, two with a GELU
in GLaMM) and a head (`text_hidden_fcs`) from the language model's hidden state at [SEG] to the mask decoder's
prompt space.
"""

from __future__ import annotations

from torch import nn
from transformers import CLIPConfig, LlamaConfig, SamConfig

from backbones.parts import clip as clips
from backbones.parts import llama
from backbones.parts import sam as sams


class GlammModel(nn.Module):
    """The parts that referring segmentation needs.

    Args:
        clip: vision tower, text tower and both projections (the text side serves text-guided pruners).
        llm: the language model.
        sam: the grounding encoder; its prompt encoder's width is the width of the mask prompt.
        attn: attention implementation of all three ("eager", "sdpa", "flash_attention_2").
        projector: "mlp" or "linear", as in `Release`.
    """

    def __init__(
        self,
        clip: CLIPConfig,
        llm: LlamaConfig,
        sam: SamConfig,
        attn: str = "sdpa",
        projector: str = "mlp",
    ) -> None:
        super().__init__()
        self.clip = clips.build_clip(clip, attn)
        self.language_model = llama.build_llama(llm, attn)
        self.grounding_encoder = sams.build_sam(sam, attn)
        vision_width, width = clip.vision_config.hidden_size, llm.hidden_size
        prompt_width = sam.prompt_encoder_config.hidden_size
        first = nn.Linear(vision_width, width)
        self.projector = (
            first if projector == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(width, width))
        )
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width)
        )
        self.lm_head = nn.Linear(width, llm.vocab_size, bias=False)

    def learned(self) -> dict[str, nn.Module]:
        """The parts without which a model of sound towers segments nothing, as messages name them."""
        return {
            "the projector": self.projector,
            "the [SEG] head (text_hidden_fcs)": self.text_hidden_fcs,
            "the mask decoder": self.grounding_encoder.mask_decoder,
        }
