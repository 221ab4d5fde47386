"""Reader of a refs file: JSON, or a pickle of which nothing runs and that costs no more than its length."""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.parts.json_files import load_json
from harness.data.coco import whole
from harness.data.sample import DataError

NO_TARGET = -1
MOST_BYTES = 2**30  # the largest published file has 60 MiB
# characters that sentences may have beyond the file's length, as equal texts are stored once
SHARED_TEXT = 2**20


@dataclass(frozen=True)
class Ref:
    """One ref: what it names in which image, and the sentences that name it as (id, text)."""

    id: int
    image: int
    annotations: tuple[int, ...]
    split: str
    sentences: tuple[tuple[int, str], ...]


# what builds lists, dicts, text and numbers. No tuples and sets: hashing those that name themselves twice
# never ends
_PLAIN = (
    "PROTO FRAME STOP MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS NONE NEWTRUE NEWFALSE "
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8"
)
PLAIN = frozenset(_PLAIN.split())


class _PlainUnpickler(pickle.Unpickler):
    """Finds no class and no function, whatever a file names."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(data: bytes) -> Any:
    """Load plain containers, and refuse what would run code or exhaust memory or time before it can."""
    names: tuple[str, ...] = ()  # the last two texts, which protocol 4 names a class by
    for opcode, argument, _ in pickletools.genops(data):
        # the C unpickler fills a table as long as the largest memo index; an honest index is below the file's
        # length
        if (
            isinstance(argument, int)
            and opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
            and argument > len(data)
        ):
            raise pickle.UnpicklingError(f"it counts {argument} objects in {len(data)} bytes")
        if opcode.name not in PLAIN:
            if opcode.name not in ("GLOBAL", "INST", "STACK_GLOBAL"):
                raise pickle.UnpicklingError(
                    f"it asks for {opcode.name}; write lists, dicts, text and numbers alone"
                )
            wanted = ".".join(names) if opcode.name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
            hint = "; convert numpy's values with int() and str()" if wanted.startswith("numpy") else ""
            raise pickle.UnpicklingError(f"it asks for {wanted}{hint}")
        if isinstance(argument, str):
            names = (*names[-1:], argument)
    # latin-1 takes every byte string that Python 2 may have written
    return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()


def read_refs(path: Path) -> list[Ref]:
    """Refs of all splits.

    Raises:
        DataError: the file cannot be read, holds more than plain containers, or lacks what a ref needs.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise pickle.UnpicklingError(f"it has {size >> 20} MiB")
        refs = load_json(path, MOST_BYTES) if path.suffix == ".json" else _unpickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}).") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"'{path}' is not a refs file of plain lists, dicts, text and numbers ({reason}); it was not "
            f"loaded, "
            "write or download it again."
        ) from None
    if not isinstance(refs, list):
        raise DataError(f"'{path}' holds a {type(refs).__name__}, not the list of refs; download it again.")
    # a pickle may name one list again and again: what it unfolds to is bounded before it is walked through
    objects, letters = _Bound("objects", size), _Bound("characters", size + SHARED_TEXT)
    found = []
    for number, ref in enumerate(refs):
        try:
            found.append(_ref(ref, objects, letters))
        except KeyError as error:
            raise DataError(f"Ref {number} of '{path}' has no usable {error}; download it again.") from None
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Ref {number} of '{path}' is no ref ({error}); mend that, or download it again."
            ) from None
    return found


class _Bound:
    """Counts what a file of `size` bytes unfolds to."""

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size, self.left = what, size, size

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"it and those before it unfold to more than {self.size} {self.what}")


def _ref(ref: Any, objects: _Bound, letters: _Bound) -> Ref:
    if not isinstance(ref, dict):
        raise TypeError(f"a {type(ref).__name__}")
    for key, kind in {"split": str, "sentences": list}.items():
        if not isinstance(ref.get(key), kind):
            raise KeyError(key)
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    objects.take(1 + len(ids) + len(ref["sentences"]))
    annotations = tuple(whole({"ann_id": number}, "ann_id") for number in ids)
    if NO_TARGET in annotations and set(annotations) != {NO_TARGET}:
        raise ValueError(f"'ann_id' {list(annotations)[:3]} names an object and, with -1, none")
    sentences = []
    for sentence in ref["sentences"]:
        if (
            not isinstance(sentence, dict)
            or not isinstance(sentence.get("sent"), str)
            or "sent_id" not in sentence
        ):
            raise ValueError("a sentence without text or id")
        letters.take(len(sentence["sent"]))
        sentences.append((whole(sentence, "sent_id"), unicode_text(sentence["sent"])))
    # gRefCOCO gives a list, in which -1 means no target
    return Ref(
        whole(ref, "ref_id"),
        whole(ref, "image_id"),
        () if NO_TARGET in annotations else annotations,
        unicode_text(ref["split"]),
        tuple(sentences),
    )


def unicode_text(text: str) -> str:
    """The text, if it can be written as UTF-8: control characters can, half an emoji cannot.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its text {reprlib.repr(text)} has half a character (a lone surrogate)") from None
    return text
