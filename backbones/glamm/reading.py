"""Files on disk, and what is wrong with them in one sentence: json, weights in both official formats, CLIP's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pruners.base import UserError

CLIP_HUB = "openai/clip-vit-large-patch14-336"
CLIP_REVISION = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
# an index names the files of a sharded checkpoint; without one, all that match the pattern belong to it
FORMATS = (
    ("model.safetensors.index.json", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """A json object, or one sentence that says what is wrong with the file.

    Raises:
        UserError: no such file, not json, or no object; `mend` ends the sentence.
    """
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {str(path.parent)!r}; {mend}.")
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} is not readable json ({error}); {mend}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} holds a {type(found).__name__} where names and values are expected; {mend}.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else pytorch_model*.bin; those of an index if it has one.

    Raises:
        UserError: there are none, or the index names files that are not there.
    """
    for index, pattern in FORMATS:
        found = sorted(folder.glob(pattern))
        if found and (folder / index).is_file():
            shards = read_json(folder / index, "copy it again").get("weight_map")
            if not isinstance(shards, dict):
                raise UserError(f"{str(folder / index)!r} has no weight_map, which says what is in which file; copy it again.")
            named = sorted({str(name) for name in shards.values()})
            absent = [name for name in named if not (folder / name).is_file()]
            if absent:
                raise UserError(
                    f"{str(folder)!r} lacks {', '.join(absent)} of the {len(named)} files that {index} names; copy them there."
                )
            return [folder / name for name in named]
        if found:
            return found
    raise UserError(f"There are no weights in {str(folder)!r}: expected *.safetensors or pytorch_model*.bin beside config.json.")


def _load_bin(path: Path) -> dict[str, Any]:
    """The content of a .bin file; weights_only runs no code from it. Files of before torch 1.6 cannot be memory-mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) pairs of a folder.

    Raises:
        UserError: a file is missing, damaged, or holds something else.
    """
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118
                        yield name, handle.get_tensor(name)
            else:
                content = _load_bin(path)
                if not isinstance(content, dict):
                    raise TypeError(f"a {type(content).__name__}, not named tensors")
                strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
                if strange:
                    raise TypeError(f"{strange[0]} is a {type(content[strange[0]]).__name__}, not a tensor")
                yield from content.items()
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{str(path)!r} is damaged or holds more than tensors ({reason}); copy it again.") from error


def clip_folder(clip: str) -> Path:
    """A directory, or a hub name's files at the pinned revision: from the local cache, else fetched.

    Raises:
        UserError: it is neither, the hub cannot be reached, or the tokenizer's files are not in it.
    """
    folder = Path(clip) if Path(clip).is_dir() else _from_hub(clip)
    absent = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{str(folder)!r} lacks {' and '.join(absent)} of CLIP's tokenizer; copy them from {CLIP_HUB}.")
    read_json(folder / "vocab.json", f"copy it from {CLIP_HUB}")
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    revision = CLIP_REVISION if name == CLIP_HUB else None
    wanted = ["*.json", "*.txt", "*.safetensors", "*.bin"]
    try:
        try:
            cached = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
            if (cached / "config.json").is_file() and weight_files(cached):
                return cached
        except (OSError, ValueError):
            pass  # not in the cache, or not all of it
        # asked once, because a download would retry for half a minute where there is no network
        HfApi().model_info(name, revision=revision, timeout=10)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise UserError(
            f"CLIP {name!r} is neither a directory nor reachable on the hub; copy {CLIP_HUB} (revision "
            f"{CLIP_REVISION[:8]}) to this machine and give --clip DIR."
        ) from error


def fingerprint(*folders: Path) -> str:
    """16 hex digits of the contents of all weight, config and tokenizer files."""
    digest = hashlib.sha256()
    for folder in folders:
        texts = sorted([*folder.glob("*.json"), *folder.glob("tokenizer.model"), *folder.glob("merges.txt")])
        for path in [*weight_files(folder), *texts]:
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
