"""The old slow Llama tokenizer's splitting around added tokens, on top of sentencepiece.

GLaMM was trained with transformers 4.28/4.31, whose slow tokenizer strips blanks on both sides of tokens that were added
later and encodes every piece between them with a dummy prefix of its own. Today's tokenizers put other ids at exactly the
positions that the masks are read from, so the rule is written out here.
"""

from __future__ import annotations

import re
from pathlib import Path

import sentencepiece

from backbones.glamm.reading import read_json
from pruners.base import UserError

IMAGE = "<image>"
IMAGE_TOKEN = -200  # stands for the visual tokens until they are spliced in
NEEDED = ("<im_start>", "<im_end>", "[SEG]")


class LlamaTokenizer:
    """Text to ids as the official evaluation computes them.

    Args:
        folder: holds `tokenizer.model` and `added_tokens.json`.

    Raises:
        UserError: a file is missing or damaged, or the tokens that GLaMM adds are not in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        model = folder / "tokenizer.model"
        if not model.is_file():
            raise UserError(f"There is no tokenizer.model in {str(folder)!r}; copy it from the GLaMM-RefSeg release.")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(str(model))
        except RuntimeError as error:
            raise UserError(f"{str(model)!r} is no sentencepiece model; copy it again.") from error
        added = folder / "added_tokens.json"
        self._added: dict[str, int] = read_json(added, "it gives the ids of the tokens that GLaMM adds, as [SEG]")
        absent = [token for token in NEEDED if type(self._added.get(token)) is not int]
        if absent:
            raise UserError(f"{str(added)!r} gives no id for {', '.join(absent)}; copy it from the GLaMM-RefSeg release.")
        self._special = {
            self._pieces.id_to_piece(k): k for k in (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        }
        known = sorted((*self._added, *self._special), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, known)) + ")")

    @property
    def seg_id(self) -> int:
        """Id of [SEG]."""
        return self._added["[SEG]"]

    @property
    def pad_id(self) -> int:
        """Id of the padding token, which is the unknown token."""
        return self._pieces.unk_id()

    @property
    def largest_id(self) -> int:
        """The largest id that a text can get; the embedding has to have a row for it."""
        return max(self._pieces.get_piece_size() - 1, *self._added.values())

    def check(self, rows: int) -> None:
        """Raise UserError unless an embedding of so many rows has one for every id."""
        if self.largest_id >= rows:
            raise UserError(
                f"The tokenizer of {str(self._folder)!r} gives ids up to {self.largest_id} and the embedding has {rows} rows; "
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
