"""Files on disk, and what is wrong with them in one sentence: json, weights in both official formats, CLIP's
folder."""

from __future__ import annotations

import hashlib
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from backbones.parts import hub
from backbones.parts.errors import sample
from backbones.parts.json_files import read_json
from backbones.parts.release import Release
from pruners.errors import UserError

LLAMA_WORDS = ("tokenizer.model", "added_tokens.json")
CLIP_WORDS = ("vocab.json", "merges.txt")
# what torch.save writes for tensors by name, and all that a .bin file may ask for
PLAIN = re.compile(
    r"collections OrderedDict|torch \w+|torch\.storage \w+|torch\._utils _rebuild_(tensor_v2|parameter)"
)
LEGACY_PICKLES = 5  # a magic number, the protocol, the writer's machine, the content, the storages' keys
# an index names the files of a sharded checkpoint; without one, all that match the pattern belong to it
FORMATS = (
    ("model.safetensors.index.json", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else pytorch_model*.bin; those of an index
    if it has one.

    Raises:
        UserError: there are none, an adapter stands beside them, or the index names files that are not there.
    """
    if adapters := sorted(path.name for path in folder.glob("adapter_*")):
        raise UserError(
            f"{str(folder)!r} holds an adapter ({sample(adapters)}) beside its model; "
            "merge it with peft's merge_and_unload() and save the result, or take these files away if they "
            "are merged."
        )
    for index, pattern in FORMATS:
        found = sorted(folder.glob(pattern))
        if found and (folder / index).is_file():
            shards = read_json(folder / index, "copy it again").get("weight_map")
            if not isinstance(shards, dict):
                raise UserError(
                    f"{str(folder / index)!r} has no weight_map, which says what is in which file; copy it "
                    f"again."
                )
            named = sorted({str(name) for name in shards.values()})
            outside = [name for name in named if Path(name).name != name or "\0" in name]
            if outside:
                raise UserError(
                    f"{str(folder / index)!r} names {outside[0]!r}, which is no file of its folder; copy "
                    f"it again."
                )
            absent = [name for name in named if not (folder / name).is_file()]
            if absent:
                raise UserError(
                    f"{str(folder)!r} lacks {sample(absent)} of the {len(named)} files that {index} names; "
                    f"copy them there."
                )
            found = [folder / name for name in named]
        if found:
            if odd := [path.name for path in found if not path.is_file()]:
                raise UserError(f"{odd[0]} in {str(folder)!r} is no regular file; copy it again.")
            return found
    raise UserError(
        f"There are no weights in {str(folder)!r}: expected *.safetensors or pytorch_model*.bin beside "
        f"config.json."
    )


def _check_plain(path: Path) -> None:
    """Refuse a .bin file that unpacks to more than its size, or whose pickles build more than tensors.

    torch's `weights_only` runs no code, but it allocates what a file asks for.

    Raises:
        ValueError: it is such a file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # of before torch 1.6: pickles one behind another
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_pickle(file)
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is compressed, which torch's own files are not")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
            for member in members:
                if member.filename.endswith("data.pkl"):
                    with archive.open(member) as inner:
                        _check_pickle(inner)


def _check_pickle(file: IO[bytes]) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not PLAIN.fullmatch(argument):  # type: ignore[arg-type]
            raise ValueError(f"it asks for {argument.replace(' ', '.')}")  # type: ignore[union-attr]
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError("it was not written by torch.save")


def _load_bin(path: Path) -> dict[str, Any]:
    """The content of a .bin file; weights_only runs no code from it. Files of before torch 1.6 cannot be
    memory-mapped."""
    _check_plain(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is told as this file's fault."""
    try:
        yield
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{str(path)!r} is damaged or holds more than tensors ({reason}); copy it again."
        ) from error


def _named(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}, not named tensors")
    return content


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) pairs of a folder.

    Raises:
        UserError: a file is missing, damaged, or holds something else.
    """
    for path in weight_files(folder):
        with _blamed(path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118
                        yield name, handle.get_tensor(name)
            else:
                content = _named(_load_bin(path))
                strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
                if strange:
                    raise TypeError(f"{strange[0]} is a {type(content[strange[0]]).__name__}, not a tensor")
                yield from content.items()


def packed(path: Path, within: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) pairs of a torch file that has them under one of some names, or at the top.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}; give the name of one that torch.save wrote.")
    with _blamed(path):
        content = _named(_load_bin(path))
    content = next((content[name] for name in within if isinstance(content.get(name), dict)), content)
    yield from ((name, tensor) for name, tensor in content.items() if isinstance(tensor, Tensor))


def clip_folder(clip: str | None, release: Release, weights: bool = True) -> Path:
    """A directory, or a hub name's files, the release's own CLIP at the pinned revision: from the local
    cache, else fetched.

    Args:
        clip: None for the release's own.
        weights: False where its numbers suffice; then of a hub name no weights are fetched.

    Raises:
        UserError: it is neither, the hub cannot be reached, or the tokenizer's files are not in it.
    """
    clip = clip or release.clip
    folder = Path(clip)
    if not folder.is_dir():
        name = f"{clip}@{release.revision}" if clip == release.clip else clip
        mend = f"copy {release.clip} (revision {release.revision[:8]}) to this machine and give --clip DIR"
        folder = _fetched("CLIP", name, mend, weights)
    absent = [name for name in CLIP_WORDS if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{str(folder)!r} lacks {' and '.join(absent)} of CLIP's tokenizer; copy them from "
            f"{release.clip}."
        )
    return folder


def checkpoint_folder(checkpoint: str, weights: bool = True) -> Path:
    """A directory, or the files of a hub name `owner/name@revision`: from the local cache, else fetched.

    Args:
        weights: False where its numbers suffice; then of a hub name no weights are fetched.

    Raises:
        UserError: it is neither, or the hub cannot be reached.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if hub.is_name(checkpoint):
        return _fetched(
            "The checkpoint", checkpoint, "give --checkpoint the folder with config.json", weights
        )
    raise UserError(
        f"There is no checkpoint folder {checkpoint!r}; give --checkpoint the folder with config.json."
    )


def _fetched(what: str, name: str, mend: str, weights: bool) -> Path:
    """A hub name's folder, with a config and, if they are asked for, all weights."""

    def whole(folder: Path) -> bool:
        return (folder / "config.json").is_file() and (not weights or bool(weight_files(folder)))

    files = (*hub.NUMBERS, *hub.WEIGHTS) if weights else hub.NUMBERS
    return hub.fetch(what, name, whole, mend, files)


def weights_fingerprint(folder: Path, tower: Path | None, sam: dict[str, Any]) -> str:
    """Identity of a loaded model: 16 hex digits of all that its answers depend on, and of nothing else.

    That is weights by content, both configurations and the words of both tokenizers; JSON by what it says, so
    that line ends and spaces do not count. Neither names of folders nor other files enter.

    Args:
        folder: the checkpoint's.
        tower: CLIP's, None where only the checkpoint is looked at.
        sam: the grounding encoder's numbers.
    """
    digest = hashlib.sha256(json.dumps(sam, sort_keys=True).encode())
    of: dict[Path, tuple[str, ...]] = {folder: ("config.json", *LLAMA_WORDS)}
    if tower is not None:
        of[tower] = ("config.json", "preprocessor_config.json", *CLIP_WORDS)
    for place, names in of.items():
        for path in weight_files(place):
            digest.update(_content(path))
        for name in names:
            path = place / name
            digest.update(f"{name}:".encode())
            if path.suffix == ".json" and path.is_file():
                digest.update(json.dumps(read_json(path, "copy it again"), sort_keys=True).encode())
            elif path.is_file():
                digest.update(_content(path))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()
