"""Folders with a model's files: a local one, or a hub name's, from the local cache or fetched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pruners.errors import UserError

NUMBERS = ("*.json", "*.txt", "*.model")  # configurations and vocabularies
WEIGHTS = ("*.safetensors", "*.bin")
NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` in its two parts; the revision is None where there is none."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def is_name(text: str) -> bool:
    """Whether a text could be a hub name, `owner/name` or `owner/name@revision`."""
    return NAME.fullmatch(text) is not None


def fetch(
    what: str,
    name: str,
    whole: Callable[[Path], bool],
    mend: str,
    files: Sequence[str] = (*NUMBERS, *WEIGHTS),
) -> Path:
    """The folder of a hub name: from the local cache if all of it is there, else fetched.

    Args:
        what: is in the folder, for the message.
        name: `owner/name@revision`, or without a revision the latest one.
        whole: whether a folder of the cache has all that is needed.
        mend: what to do where it cannot be had, the end of a sentence.
        files: patterns of the names of those that are needed.

    Raises:
        UserError: the hub cannot be reached, or has no such model.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = split_revision(name)
    try:
        try:
            cached = Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=list(files), local_files_only=True
                )
            )
            if whole(cached):
                return cached
        except (OSError, ValueError):
            pass  # not in the cache, or not all of it
        # asked once, because a download would retry for half a minute where there is no network
        HfApi().model_info(repository, revision=revision, timeout=10)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise UserError(
            f"{what} {name!r} is neither a directory nor reachable on the hub; {mend}."
        ) from error
