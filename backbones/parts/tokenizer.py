"""The old slow Llama tokenizer's splitting around added tokens, on top of sentencepiece.

GLaMM and LISA were trained with transformers 4.28/4.31, whose slow tokenizer strips blanks on both sides of
tokens that were added later and encodes every piece between them with a dummy prefix of its own. Today's
tokenizers put other ids at exactly the positions that the masks are read from, so the rule is written out
here.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from backbones.parts.errors import sample
from backbones.parts.json_files import MOST_BYTES, read_json
from pruners.base import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

IMAGE = "<image>"
IMAGE_TOKEN = -200  # stands for the visual tokens until they are spliced in
NEEDED = ("<im_start>", "<im_end>", "[SEG]")


def _odd_tokens(added: dict[str, int], vocabulary: dict[str, int]) -> list[str]:
    """What is wrong with added tokens: no text, no id, an id of another token."""
    problems = []
    holders = {number: piece for piece, number in vocabulary.items()}
    for token, number in added.items():
        if not token or type(number) is not int or number < 0:
            problems.append(f"{token!r} has the id {reprlib.repr(number)}")
        elif holders.setdefault(number, token) != token:
            problems.append(f"{token!r} and {holders[number]!r} share the id {number}")
    return problems


class LlamaTokenizer:
    """Text to ids as the official evaluation computes them.

    Args:
        folder: holds `tokenizer.model` and `added_tokens.json`.

    Raises:
        UserError: a file is missing or damaged, or the tokens that these models add are not in it.
    """

    needed: tuple[str, ...] = NEEDED

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        model = folder / "tokenizer.model"
        if not model.is_file():
            raise UserError(
                f"There is no tokenizer.model in {str(folder)!r}; copy it from where the weights came."
            )
        try:
            if model.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has {model.stat().st_size >> 20} MiB")
            self._pieces = sentencepiece.SentencePieceProcessor(str(model))
            vocabulary = {self._pieces.id_to_piece(k): k for k in range(self._pieces.get_piece_size())}
            special = [
                self._pieces.id_to_piece(k)
                for k in (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
            ]
        except Exception as error:  # sentencepiece has no error of its own
            raise UserError(
                f"{str(model)!r} is no sentencepiece model with <unk>, <s> and </s>; copy it again."
            ) from error
        added = folder / "added_tokens.json"
        self._added: dict[str, int] = read_json(added, "it gives the ids of added tokens, as [SEG]")
        absent = [token for token in self.needed if type(self._added.get(token)) is not int]
        if absent:
            raise UserError(
                f"{str(added)!r} gives no id for {', '.join(absent)}; copy it from where the weights came."
            )
        if problems := _odd_tokens(self._added, vocabulary):
            raise UserError(
                f"{str(added)!r} cannot be used ({sample(problems)}); copy it from where the weights came."
            )
        self._special = {piece: vocabulary[piece] for piece in special}
        known = sorted((*self._added, *self._special), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, known)) + ")")

    @property
    def seg_id(self) -> int:
        """Id of [SEG]."""
        return self._added["[SEG]"]

    def tokens(self) -> dict[str, int]:
        """Ids of all pieces and added tokens, by their text."""
        pieces = {self._pieces.id_to_piece(k): k for k in range(self._pieces.get_piece_size())}
        return pieces | self._added

    @property
    def pad_id(self) -> int:
        """Id of the padding token, which is the unknown token."""
        return self._pieces.unk_id()

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self._pieces.eos_id()

    @property
    def largest_id(self) -> int:
        """The largest id that a text can get; the embedding has to have a row for it."""
        return max(self._pieces.get_piece_size() - 1, *self._added.values())

    def check(self, rows: int) -> None:
        """Raise UserError unless an embedding of so many rows has one for every id."""
        if self.largest_id >= rows:
            raise UserError(
                f"The tokenizer of {str(self._folder)!r} gives ids up to {self.largest_id} and the "
                f"embedding has {rows} rows; "
                "copy tokenizer.model and added_tokens.json from where the weights came."
            )

    def __len__(self) -> int:
        return self._pieces.get_piece_size() + len(self._added)

    def _chunk(self, text: str) -> list[int]:
        parts = self._split.split(text)  # text, token, text, token, ..., text
        ids: list[int] = []
        for k, part in enumerate(parts):
            if k % 2:
                ids.append(self._added.get(part, self._special.get(part, self.pad_id)))
                continue
            # blanks vanish beside added tokens, but not beside </s>
            if k > 0 and parts[k - 1] in self._added:
                part = part.lstrip()
            if k + 1 < len(parts) and parts[k + 1] in self._added:
                part = part.rstrip()
            if part:
                ids += self._pieces.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, added and special tokens by their names."""
        names = {number: token for token, number in {**self._added, **self._special}.items()}
        parts = []
        for name, group in groupby(ids, key=names.get):
            found = list(group)
            parts += [self._pieces.decode(found)] if name is None else [name] * len(found)
        return " ".join(part for part in parts if part)

    def encode(self, text: str) -> list[int]:
        """Ids with the start token in front and IMAGE_TOKEN in the place of `<image>`."""
        ids = [self._pieces.bos_id()]
        for number, chunk in enumerate(text.split(IMAGE)):
            if number:
                ids.append(IMAGE_TOKEN)
            ids += self._chunk(chunk)
        return ids


def behind_image(ids: list[int]) -> list[int]:
    """Ids that stand behind the image's place."""
    return ids[ids.index(IMAGE_TOKEN) + 1 :]


def clip_tokenizer(folder: Path, rows: int) -> CLIPTokenizer:
    """CLIP's tokenizer from `vocab.json` and `merges.txt`, which are all that it depends on.

    Args:
        rows: of the text tower's embedding; every id needs one.

    Raises:
        UserError: the files are damaged or do not fit together.
    """
    from transformers import CLIPTokenizer

    words = read_json(folder / "vocab.json", "copy it from where CLIP's weights came")
    merges = _merges(folder / "merges.txt")
    problems = [f"{token} is missing" for token in ("<|startoftext|>", "<|endoftext|>") if token not in words]
    problems += [
        f"{piece!r} has the id {reprlib.repr(k)}"
        for piece, k in words.items()
        if type(k) is not int or not 0 <= k < rows
    ]
    if len(set(words.values())) < len(words) and not problems:
        problems.append("two pieces share an id")
    problems += [
        f"{a!r} and {b!r} merge into no piece" for a, b in merges if not {a, b, a + b} <= words.keys()
    ]
    if problems:
        raise UserError(
            f"vocab.json and merges.txt in {str(folder)!r} do not fit together or to {rows} embedding rows "
            f"({sample(problems, 3)}); copy them from where CLIP's weights came."
        )
    return CLIPTokenizer(vocab=words, merges=merges)  # type: ignore[arg-type]


def _merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of pieces, one per line behind the file's head."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size >> 20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}); copy it from where CLIP's weights came."
        ) from error
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if odd := [pair for pair in pairs if len(pair) != 2]:
        raise UserError(
            f"{str(path)!r} has a line that is no pair of pieces ({reprlib.repr(' '.join(odd[0]))}); copy "
            f"it from where CLIP's weights came."
        )
    return pairs  # type: ignore[return-value]
