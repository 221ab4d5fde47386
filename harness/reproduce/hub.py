"""Files of a pinned revision in the hub's cache: what is there, and fetching the rest where that is asked
for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.reproduce.spec import File, Weights
from pruners.errors import UserError

CHUNK = 2**22
PATIENCE = 10.0  # seconds for the hub's first answer


def cached(weights: Weights, file: File, cache: Path | None = None) -> Path | None:
    """Where the hub's cache holds a file; None where it does not.

    Args:
        cache: folder of the layout `models--OWNER--NAME/snapshots/REVISION/`; the user's without.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repository, file.name, cache_dir=cache, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None


def download(weights: Weights, file: File, cache: Path | None = None, endpoint: str | None = None) -> Path:
    """Fetch a file of the pinned revision into the hub's cache, and see that it is the one.

    Args:
        endpoint: of the hub; the usual one without.

    Raises:
        UserError: the hub cannot be reached, must not be asked (HF_HUB_OFFLINE), or gave another file.
    """
    from huggingface_hub import constants, hf_hub_download

    what = f"{file.name} of {weights.repository}@{weights.revision}"
    by_hand = (
        f"fetch it where there is a network and give its folder with --{weights.parameter}, or copy "
        f"'models--{weights.repository.replace('/', '--')}' into '{cache or constants.HF_HUB_CACHE}'"
    )
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or {by_hand}.")
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
    except Exception as error:  # no network, no such file, no room, no leave
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{what} cannot be fetched ({reason}); {by_hand}.") from error
    verify(path, file, what)
    return path


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
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
    return found.hexdigest()
