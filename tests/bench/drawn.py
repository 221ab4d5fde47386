"""What benches run on that need no answers: models of stated sizes with drawn weights, drawn requests, and
files of rows, in which a run goes on where an earlier one stopped."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from backbones.glamm.checkpoint import build_meta, materialise
from backbones.glamm.full_size import on_meta
from backbones.glamm.model import GlammModel
from harness.store import provenance
from harness.store.journal import Journal, Reader
from pruners.base import UserError

# GLaMM-7B's proportions at a size that one CPU core serves: 576 patches, and a language model of 15 times the
# vision tower's multiply-adds (23 in GLaMM-7B). The grounding encoder, which serving does not run, is small.
SMALL_LLM = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
SMALL_VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 192,
    "patch_size": 8,
    "projection_dim": 64,
}
SMALL_TEXT = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 64,
    "bos_token_id": 1022,
    "eos_token_id": 1023,
}
SMALL_SAM = {
    "img_size": 64,
    "patch_size": 16,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "window_size": 4,
    "global_attn_indexes": [1],
    "out_chans": 32,
    "mask_in_chans": 16,
    "decoder_mlp_dim": 64,
    "decoder_num_heads": 2,
    "iou_head_hidden_dim": 32,
}
TINY_LLM = SMALL_LLM | {"hidden_size": 64, "intermediate_size": 172}
TINY_VISION = SMALL_VISION | {"image_size": 96}
MODELS = ("tiny", "small", "glamm-mini", "glamm-7b")
BEFORE = 37  # tokens before the image, the same in every request, as GLaMM's are
AFTER, NEW, WORDS = (24, 40), (4, 20), 12  # least and most of a question and an answer; CLIP's words


def make_current(device: str) -> None:
    """Let events, caches and profiles be those of a CUDA device, if it is one."""
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device).index or 0)  # which takes no "cuda" without a number


def without_weights(name: str, attn: str = "sdpa") -> GlammModel:
    """One of MODELS on the meta device."""
    own = {"tiny": (TINY_LLM, TINY_VISION), "small": (SMALL_LLM, SMALL_VISION)}
    if name not in own:
        return on_meta(name, attn)
    llm, vision = own[name]
    tower = CLIPConfig(
        vision_config=vision, text_config=SMALL_TEXT, projection_dim=SMALL_TEXT["projection_dim"]
    )
    return build_meta(llm, tower, SMALL_SAM, attn).eval().requires_grad_(False)


def random_weights(model: GlammModel, device: str, dtype: torch.dtype, seed: int = 0) -> GlammModel:
    """The model of a meta build on a device with drawn weights: matrices keep the size of what goes through
    them, norms scale by about 1."""
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 0
                tensor.normal_(0, fan_in**-0.5) if fan_in else tensor.normal_(1, 0.1)
        # a token's own embedding weighs as much as what attention brings, or every answer were one token
        model.language_model.embed_tokens.weight.normal_(0, 1)
    materialise(model, device)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Request:
    """One image, one question, and how long its answer is.

    Attributes:
        pixels: (3, s, s) for the vision tower.
        before, after: (a,) and (b,) token ids on the two sides of the image.
        words: (W,) CLIP's tokens of the question.
        new: tokens of the answer.
    """

    number: int
    pixels: Tensor
    before: Tensor
    after: Tensor
    words: Tensor
    new: int

    @property
    def text(self) -> int:
        """Tokens of the prompt that are not visual."""
        return len(self.before) + len(self.after)


def request(model: GlammModel, seed: int, number: int) -> Request:
    """Request `number` of a workload: all of it follows from the seed and the number."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    common, own = (
        torch.Generator().manual_seed(zlib.crc32(f"{seed} {of}".encode())) for of in ("beginning", number)
    )
    side, most = model.clip.config.vision_config.image_size, model.lm_head.out_features

    def drawn(ends: tuple[int, int]) -> int:
        return int(torch.randint(ends[0], ends[1] + 1, (1,), generator=own))

    pixels = torch.randn(3, side, side, generator=own)
    before = torch.randint(0, most, (BEFORE,), generator=common)
    after = torch.randint(0, most, (drawn(AFTER),), generator=own)
    words = torch.randint(0, model.clip.config.text_config.vocab_size, (WORDS,), generator=own)
    words[-1] = model.clip.config.text_config.eos_token_id  # at which CLIP reads the sentence
    pixels, before, after, words = (one.to(device) for one in (pixels, before, after, words))
    return Request(number, pixels.to(dtype), before, after, words, drawn(NEW))


class Rows:
    """A bench's file: what was asked of what, and a row for every key that was measured. It goes on where an
    earlier run of the same settings, code and machine stopped.

    Args:
        settings: what was asked, as JSON has it.
        keys: columns that name a row.

    Raises:
        UserError: the file holds another bench's rows, or those of other settings, code or machine.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], device: str, keys: Sequence[str]) -> None:
        self.path, self._keys = path, keys
        self.header: dict[str, Any] = {
            "schema": 1,
            "settings": dict(settings),
            # as it was typed, without the folder it was typed in
            "provenance": provenance.collect(device) | {"command": ["python", *sys.orig_argv[1:]]},
        }
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        offset = 0
        if path.is_file() and not path.read_bytes().partition(b"\n")[1]:
            path.unlink()  # torn before its first line was whole
        if path.is_file():
            header, rows, offset = read_rows(path)
            apart = [name for name in settings if header["settings"].get(name) != settings[name]]
            apart += provenance.differences(header["provenance"], self.header["provenance"])
            if apart:
                raise UserError(
                    f"{path} was measured with another {', '.join(apart)}; delete it, or give another --out."
                )
            self.header = header
            self.rows = {self.key(row): row for row in rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(path, self.header, offset)

    def key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a row is of."""
        return tuple(row[name] for name in self._keys)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._journal.append([row])
        self.rows[self.key(row)] = dict(row)


def read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Header and rows of a file, and where its last whole line ends.

    Raises:
        UserError: there is no such file, or a line is damaged.
    """
    if not path.is_file():
        raise UserError(f"There is no {path} yet; measure first, or give another --out.")
    reader = Reader(path, (1,), "delete the file to measure again")
    rows = [row for _, row in reader]
    return reader.header, rows, reader.offset
