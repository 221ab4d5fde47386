"""Models that see and segment, by name; heavy imports happen in `load`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pruners.base import UserError, nearest

if TYPE_CHECKING:
    from backbones.base import Backbone

MINI = Path(__file__).parent / "mini" / "weights"
DTYPES = ("float32", "bfloat16", "float16", "float64")
IMAGE_BACKENDS = ("pil", "mmcv")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
_NAMES = {
    "glamm-mini": "the embedded small GLaMM, trained on RefShapes; no downloads",
    "glamm": "GLaMM-RefSeg from an official checkpoint: --checkpoint DIR [--clip DIR or hub name]",
}


def names() -> dict[str, str]:
    """Known backbones and what they are."""
    return dict(_NAMES)


def _choose(what: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise UserError(f"There is no {what} {value!r}; there are {', '.join(valid)}.{nearest(value, valid)}")
    return value


def _check_device(device: str, attn: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"{device!r} is no device; give --device cpu or cuda.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device} needs a CUDA GPU and a CUDA build of torch; here give --device cpu.")
    if attn == "flash_attention_2" and (find_spec("flash_attn") is None or kind != "cuda"):
        raise UserError(
            "--attn flash_attention_2 needs a CUDA GPU and the package: pip install 'groundprune[flash]';"
            " without them give --attn sdpa."
        )


def load(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    clip: str | None = None,
    sam_dims: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attn: str = "sdpa",
    batch_size: int = 16,
    image_backend: str = "pil",
) -> Backbone:
    """Load a backbone.

    Args:
        name: "glamm-mini" or "glamm".
        checkpoint: official checkpoint folder, for "glamm".
        clip: CLIP folder or hub name; by default the one that GLaMM was trained with.
        sam_dims: json file with the grounding encoder's numbers; by default the one beside config.json, else SAM ViT-H.
        image_backend: "pil", or "mmcv" for a faster grounding branch with the same pixels.
        batch_size: most rows in one forward pass; results do not depend on it.

    Raises:
        UserError: unknown name or setting, missing or unfit files, or a device that is not there.
    """
    if name not in _NAMES:
        raise UserError(f"There is no backbone {name!r}; there are {', '.join(_NAMES)}.{nearest(name, _NAMES)}")
    _choose("dtype", dtype, DTYPES)
    _choose("attention implementation", attn, ATTENTION)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} is too small; give 1 or more.")
    _check_device(device, attn)
    _choose("image backend", image_backend, IMAGE_BACKENDS)
    if image_backend == "mmcv" and find_spec("mmcv") is None:
        raise UserError("--image-backend mmcv needs the package: pip install 'groundprune[mmcv]'; or give --image-backend pil.")
    if name == "glamm-mini":
        checkpoint, clip = MINI / "checkpoint", str(MINI / "clip")
    elif checkpoint is None:
        raise UserError("The backbone glamm needs weights: give --checkpoint DIR, or use --backbones glamm-mini.")

    import torch

    from backbones.glamm import checkpoint as files
    from backbones.glamm.backbone import GlammBackbone
    from backbones.glamm.tokenizer import LlamaTokenizer

    folder = Path(checkpoint)
    tower = clip or files.CLIP_HUB
    sam = files.read_json(Path(sam_dims), "--sam-dims names a json file") if sam_dims is not None else None
    model = files.load_checkpoint(folder, tower, dtype=getattr(torch, dtype), device=device, attn=attn, sam=sam)
    tower_folder = files.clip_folder(tower)
    return GlammBackbone(
        model,
        LlamaTokenizer(folder),
        tower_folder,
        name=name,
        fingerprint=files.fingerprint(folder, tower_folder),
        device=device,
        dtype=dtype,
        attn=attn,
        batch_size=batch_size,
        image_backend=image_backend,
    )
