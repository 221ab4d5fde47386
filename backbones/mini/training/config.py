"""The numbers of glamm-mini: GLaMM's classes, 24 x 24 = 576 visual tokens, about 4 million parameters."""

from __future__ import annotations

from transformers import CLIPConfig, LlamaConfig

IMAGE = 192
CLIP_PATCH = 8
SAM_PATCH = 12
PROMPT_WIDTH = 64

# The official evaluation code hard-codes SAM's geometry; the loader reads it from this file beside
# config.json.
SAM_DIMS = {
    "img_size": IMAGE,
    "patch_size": SAM_PATCH,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "window_size": 8,
    "global_attn_indexes": [1, 3],
    "out_chans": PROMPT_WIDTH,
    "mask_in_chans": 16,
    "decoder_mlp_dim": 256,
    "decoder_num_heads": 4,
    "iou_head_hidden_dim": 64,
}


def mini_clip_config(vocab: int, bos: int, eos: int) -> CLIPConfig:
    """CLIP with a 192 px / patch 8 vision tower of five layers; the language model reads the output of the
    fourth."""
    return CLIPConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "image_size": IMAGE,
            "patch_size": CLIP_PATCH,
            "projection_dim": 64,
        },
        text_config={
            "vocab_size": vocab,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "projection_dim": 64,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": eos,
        },
        projection_dim=64,
    )


def mini_llm_config(vocab: int) -> LlamaConfig:
    """Llama, five layers of width 128."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
