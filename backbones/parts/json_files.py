"""One JSON reader for data sets, checkpoints and tokenizers: bounded in size, and every fault is one kind of
error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pruners.errors import UserError

MOST_BYTES = 2**26  # of a config, an index or a vocabulary: the largest released ones have a few MiB


def load_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file in UTF-8, with or without byte-order mark.

    Args:
        most: bytes of the largest file that is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is larger, or no JSON that can be held: torn, nested too deeply, numbers of thousands
            of digits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"it has {size >> 20} MiB, more than {most >> 20}")
    content = path.read_bytes()
    # a list or an object takes some twenty times its two bytes: a file of brackets alone would fill the
    # memory
    if size > 2**20 and content.count(b"[") + content.count(b"{") > size // 8:
        raise ValueError("it is made of brackets")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8: {error.reason} at byte {error.start}") from None


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """A json object, or one sentence that says what is wrong with the file.

    Raises:
        UserError: no such file, not json, or no object; `mend` ends the sentence.
    """
    try:
        found = load_json(path)
    except FileNotFoundError:
        raise UserError(f"There is no {path.name} in {str(path.parent)!r}; {mend}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is not readable json ({error}); {mend}.") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{str(path)!r} holds a {type(found).__name__} where names and values are expected; {mend}."
        )
    return found
