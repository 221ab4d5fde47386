"""The slow Llama tokenizer's splitting around added tokens, on top of sentencepiece.

GLaMM and LISA were trained with transformers 4.28/4.31, whose slow tokenizer strips blanks on both sides of
tokens that were added later and encodes every piece between them with a dummy prefix of its own. Today's
tokenizers put other ids at exactly the positions that the masks are read from, so the rule is written out
here. The slow tokenizer of 4.41, with which VideoGLaMM was trained, strips as each token's own flags say.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import sentencepiece

from backbones.parts.errors import sample
from backbones.parts.json_files import MOST_BYTES, read_json
from pruners.base import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

IMAGE = "<image>"
IMAGE_TOKEN = -200  # stands for the visual tokens until they are spliced in
SEG = "[SEG]"
SPACE = "\u2581"  # sentencepiece's own


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

    Attributes:
        needed: tokens that these models add.
    """

    needed: ClassVar[tuple[str, ...]] = ("<im_start>", "<im_end>", SEG)

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
        return self._added[SEG]

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
    def end_ids(self) -> frozenset[int]:
        """Ids of all tokens that end an answer."""
        return frozenset({self.end_id})

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
        ids = self._start()
        for number, chunk in enumerate(text.split(IMAGE)):
            if number:
                ids.append(IMAGE_TOKEN)
            ids += self._chunk(chunk)
        return ids

    def words(self, text: str) -> list[int]:
        """The same without the start token."""
        return self.encode(text)[len(self._start()) :]

    def _start(self) -> list[int]:
        """What every text begins with."""
        return [self._pieces.bos_id()]


# what ends an answer in Phi-3's chats, where the vocabulary has it
PHI3_ENDS = ("<|endoftext|>", "<|assistant|>", "<|end|>")
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"  # normalizer_spec { add_dummy_prefix: false }, merged into the model


class Phi3Tokenizer(LlamaTokenizer):
    """The same of transformers 4.41 with the settings of `tokenizer_config.json`, as Phi-3 comes with.

    Read are `add_bos_token`, `legacy`, `eos_token`, which tokens are special, and the flags `lstrip` and
    `rstrip` in `added_tokens_decoder`; without that the older rule holds. Not `legacy`, a text has one blank
    in front and its pieces none.
    """

    needed = (SEG,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = folder / "tokenizer_config.json"
        held = read_json(config, "it says how blanks are treated") if config.is_file() else {}
        self._bos, self._legacy = bool(held.get("add_bos_token", True)), bool(held.get("legacy", True))
        flags = [one for one in held.get("added_tokens_decoder", {}).values() if isinstance(one, dict)]
        self._strips = {
            side: {str(one.get("content")) for one in flags if one.get(side) is True}
            if flags
            else {*self._added}
            for side in ("lstrip", "rstrip")
        }
        given = [held.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad")]
        self._named = {_text(one) for one in (*given, *(held.get("additional_special_tokens") or ()))}
        self._eos = _text(held.get("eos_token"))
        if not self._legacy:
            model = (folder / "tokenizer.model").read_bytes()
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model + _WITHOUT_PREFIX)

    @property
    def end_id(self) -> int:
        return self._id(self._eos) if self._eos in (self._added | self._special) else self._pieces.eos_id()

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset({self.end_id, *(self._added[name] for name in PHI3_ENDS if name in self._added)})

    def _id(self, token: str) -> int:
        return self._added.get(token, self._special.get(token, self.pad_id))

    def _start(self) -> list[int]:
        return super()._start() if self._bos else []

    def _chunk(self, text: str) -> list[int]:
        if text and not self._legacy:
            text = SPACE + text.replace(SPACE, " ")
        parts = self._split.split(text)
        for k in range(1, len(parts), 2):
            if parts[k] in self._strips["rstrip"]:
                parts[k + 1] = parts[k + 1].lstrip()
            if parts[k] in self._strips["lstrip"]:
                parts[k - 1] = parts[k - 1].rstrip()
        if not self._legacy and parts[0] == SPACE and len(parts) > 1 and parts[1] in self._named:
            parts[0] = ""
        found = [[self._id(part)] if k % 2 else self._encoded(part) for k, part in enumerate(parts) if part]
        return [number for ids in found for number in ids]

    def _encoded(self, text: str) -> list[int]:
        """A piece without added tokens. Behind an unknown one, which is taken away again, blanks in front
        stay."""
        if self._legacy or not text.startswith((SPACE, " ")):
            return self._pieces.encode(text)  # type: ignore[no-any-return]
        unknown = self._pieces.id_to_piece(self._pieces.unk_id())
        length = len(self._pieces.encode(unknown))
        return self._pieces.encode(unknown + text)[length:]  # type: ignore[no-any-return]


def _text(token: Any) -> str:
    """A token as a configuration names it: by its text, or with its flags."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


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
