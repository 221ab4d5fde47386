"""Where a picture that a person asked for is written: the file behind `--out`, known and tried before
anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruners.errors import UserError, nearest

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
FILM = ".gif"


def picture_file(asked: Path | None, stem: str) -> Path:
    """The picture that `--out` means: without a suffix a PNG, of a folder `stem`.png in it.

    Args:
        asked: None for `stem`.png in the working folder.

    Raises:
        UserError: the suffix names no picture, or the file cannot be written.

    Example:
        >>> picture_file(None, "try"), picture_file(Path("mine.svg"), "try")
        (PosixPath('try.png'), PosixPath('mine.svg'))
    """
    path = asked or Path(stem)
    if path.is_dir():
        path = path / stem
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    if path.suffix.lower() not in PICTURES:
        film = " (a film is what `try` writes of a clip)" if path.suffix.lower() == FILM else ""
        raise UserError(
            f"--out {str(asked)!r} ends in {path.suffix}, which is no picture{film}; give "
            f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}.{nearest(path.suffix, PICTURES)}"
        )
    return _writable(path, asked)


def film_files(asked: Path | None, stem: str) -> tuple[Path, Path]:
    """Strip and film of a clip beside each other, whichever of the two `--out` names.

    Raises:
        UserError: as `picture_file`.
    """
    if asked is not None and asked.suffix.lower() == FILM and not asked.is_dir():
        return picture_file(asked.with_suffix(".png"), stem), _writable(asked, asked)
    picture = picture_file(asked, stem)
    return picture, _writable(picture.with_suffix(FILM), asked)


def _writable(path: Path, asked: Path | None) -> Path:
    """The path, if a file can be written there; none is left behind."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); give --out a file "
            f"{'in another folder' if asked is None else 'that you may write'}."
        ) from error
    return path


def save_as_asked(figure: Any, path: Path) -> None:
    """Write a figure to a file that a person named.

    Raises:
        UserError: it cannot be written, or its ending names no picture.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix.lower() == ".png" else None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot write {str(path)!r} ({error}); give --out a PNG file that you may write."
        ) from error
