"""Files of a pinned revision in the hub's cache: what is there, and fetching the rest where that is asked
for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.reproduce.spec import File, Weights
from pruners.errors import UserError

PATIENCE = 10.0  # seconds for the hub's first answer


def cached(weights: Weights, file: File, cache: Path | None = None) -> Path | None:
    """Where the hub's cache holds a file; None where it does not.

    Args:
        cache: folder of the layout `models--OWNER--NAME/snapshots/REVISION/`; the user's without.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repository, file.name, cache_dir=cache, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None


def reach(weights: Weights, cache: Path | None = None, endpoint: str | None = None) -> None:
    """Ask the hub once for a repository, because a download would retry for half a minute where there is no
    network.

    Raises:
        UserError: it cannot be reached, must not be asked (HF_HUB_OFFLINE), or has no such revision.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{_named(weights)} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or "
            f"{_by_hand(weights, cache)}."
        )
    try:
        HfApi(endpoint).model_info(weights.repository, revision=weights.revision, timeout=PATIENCE)
    except Exception as error:  # no network, no such repository, no leave
        raise _not_fetched(_named(weights), weights, cache, error) from error


def download(weights: Weights, file: File, cache: Path | None = None, endpoint: str | None = None) -> Path:
    """Fetch a file of the pinned revision into the hub's cache, and see that it is the one.

    Args:
        endpoint: of the hub; the usual one without.

    Raises:
        UserError: the hub cannot be reached, has no such file, or gave another one.
    """
    from huggingface_hub import hf_hub_download

    what = f"{file.name} of {_named(weights)}"
    try:
        path = Path(
            hf_hub_download(
                weights.repository,
                file.name,
                revision=weights.revision,
                cache_dir=cache,
                endpoint=endpoint,
                etag_timeout=PATIENCE,
            )
        )
    except Exception as error:  # the network went, no such file, no room, no leave
        raise _not_fetched(what, weights, cache, error) from error
    verify(path, file, what)
    return path


def _named(weights: Weights) -> str:
    return f"{weights.repository}@{weights.revision}"


def _not_fetched(what: str, weights: Weights, cache: Path | None, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{what} cannot be fetched ({reason}); {_by_hand(weights, cache)}.")


def _by_hand(weights: Weights, cache: Path | None) -> str:
    from huggingface_hub import constants

    folder = f"models--{weights.repository.replace('/', '--')}"
    return (
        f"fetch it where there is a network and give its folder with --{weights.parameter}, or copy the "
        f"folder {folder!r} of that machine's cache into '{cache or constants.HF_HUB_CACHE}'"
    )


def verify(path: Path, file: File, what: str) -> None:
    """See that a file is the one that a spec means.

    Raises:
        UserError: its size or its digest is another.
    """
    mend = f"delete {str(path.resolve())!r} and fetch it again"
    if not file.fits(found := path.stat().st_size):
        raise UserError(f"{what} has {found} bytes where the spec says {file.size}; {mend}.")
    if file.sha256 is not None and (digest := sha256(path)) != file.sha256:
        raise UserError(f"{what} has the SHA256 {digest} where the spec says {file.sha256}; {mend}.")


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
