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
HALF = ("bfloat16", "float16")
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


def check_attention(attn: str) -> str:
    """The name of an attention implementation, if it is one.

    Raises:
        UserError: it is none.
    """
    return _choose("attention implementation", attn, ATTENTION)


def _check_device(device: str, attn: str, dtype: str) -> str:
    """The device, "cpu" for all ways to write it.

    Raises:
        UserError: it is not there, or cannot run the attention implementation.
    """
    import torch

    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"{device!r} is no device; give --device cpu or cuda.") from error
    if place.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {device} is not one that the backbones run on; give --device cpu or cuda.")
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {device} needs a CUDA GPU and a CUDA build of torch; here give --device cpu."
            )
        if (place.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"There is no {device}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}."
            )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps needs a Mac with its own GPU; here give --device cpu.")
    if attn == "flash_attention_2":
        if find_spec("flash_attn") is None or place.type != "cuda":
            raise UserError(
                "--attn flash_attention_2 needs a CUDA GPU and the package: pip install 'groundprune[flash]';"
                " without them give --attn sdpa."
            )
        if dtype not in HALF:
            raise UserError(
                f"--attn flash_attention_2 does not compute in {dtype}; add --dtype bfloat16 or give --attn sdpa."
            )
    return "cpu" if place.type == "cpu" else device


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
    tensor_parallel: int = 1,
) -> Backbone:
    """Load a backbone.

    Args:
        name: "glamm-mini" or "glamm".
        checkpoint: official checkpoint folder, for "glamm".
        clip: CLIP folder or hub name; by default the one that GLaMM was trained with.
        sam_dims: json file with the grounding encoder's numbers; by default the one beside config.json, else
            SAM ViT-H.
        image_backend: "pil", or "mmcv" for a faster grounding branch with the same pixels.
        batch_size: most rows in one forward pass; results do not depend on it.
        tensor_parallel: processes that share one language model; a launcher has started them.

    Raises:
        UserError: unknown name or setting, missing or unfit files, or a device that is not there.
    """
    if name not in _NAMES:
        raise UserError(
            f"There is no backbone {name!r}; there are {', '.join(_NAMES)}.{nearest(name, _NAMES)}"
        )
    _choose("dtype", dtype, DTYPES)
    check_attention(attn)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} is too small; give 1 or more.")
    device = _check_device(device, attn, dtype)
    _choose("image backend", image_backend, IMAGE_BACKENDS)
    if image_backend == "mmcv" and find_spec("mmcv") is None:
        raise UserError(
            "--image-backend mmcv needs the package: pip install 'groundprune[mmcv]'; or give --image-backend pil."
        )
    if tensor_parallel < 1:
        raise UserError(f"--tensor-parallel {tensor_parallel} is too small; give 1 or more.")
    if name == "glamm-mini":
        checkpoint, clip = MINI / "checkpoint", str(MINI / "clip")
    elif checkpoint is None:
        raise UserError(
            "The backbone glamm needs weights: give --checkpoint DIR, or use --backbones glamm-mini."
        )

    from backbones import versions

    versions.warn()
    try:
        return _load(
            name,
            Path(checkpoint),
            clip,
            sam_dims,
            device,
            dtype,
            attn,
            batch_size,
            image_backend,
            tensor_parallel,
        )
    except (ImportError, AttributeError, TypeError, KeyError) as error:  # how a changed interface shows
        if not (strange := versions.untested()):
            raise
        raise UserError(
            f"The model cannot be built with what is installed ({error!r}); {strange[0]}."
        ) from error


def _load(
    name: str,
    folder: Path,
    clip: str | None,
    sam_dims: str | Path | None,
    device: str,
    dtype: str,
    attn: str,
    batch_size: int,
    image_backend: str,
    tensor_parallel: int,
) -> Backbone:
    import torch

    from backbones.glamm import reading
    from backbones.glamm.backbone import GlammBackbone
    from backbones.glamm.checkpoint import load_checkpoint
    from backbones.glamm.sizes import sam_numbers
    from backbones.parts.tensor_parallel import mesh, split
    from backbones.parts.tokenizer import LlamaTokenizer

    if not folder.is_dir():
        raise UserError(
            f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with config.json."
        )
    sam = sam_numbers(folder, Path(sam_dims) if sam_dims is not None else None)
    tokenizer = LlamaTokenizer(folder)
    tower = reading.clip_folder(clip or reading.CLIP_HUB)
    team = mesh(tensor_parallel, device) if tensor_parallel > 1 else None
    try:
        # a model that is shared is read into main memory, and each device gets its part
        first = "cpu" if team is not None else device
        model = load_checkpoint(
            folder, str(tower), dtype=getattr(torch, dtype), device=first, attn=attn, sam=sam
        )
        if team is not None:
            split(model.language_model, team)
            model.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model does not fit into {device} in {dtype}; give --dtype bfloat16 or another --device."
        ) from error
    tokenizer.check(model.language_model.config.vocab_size)
    return GlammBackbone(
        model,
        tokenizer,
        tower,
        name=name,
        fingerprint=reading.fingerprint(folder, tower, sam),
        device=device,
        dtype=dtype,
        attn=attn,
        batch_size=batch_size,
        image_backend=image_backend,
    )
