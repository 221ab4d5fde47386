"""Builds videoglamm-mini's tokenizer from RefClips' own language, in the format of Phi-3's slow one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from backbones.videoglamm.conversation import QUESTION
from backbones.videoglamm.mini_training.data import Clips
from backbones.videoglamm.mini_training.prompt import ADDED, ANSWERS

PIECES = 640
FILES = ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
SYSTEM = "You are a helpful AI assistant."
EVERYDAY = (
    "a man in a red shirt running to the left",
    "the dog that jumps over the fence",
    "second car from left",
)


# behind these a line break vanishes, as in Phi-3's tokenizer
STRIPPING = ("<|assistant|>", "<|end|>", "<|system|>", "<|user|>")


def corpus(clips: Clips, count: int = 600) -> Iterator[str]:
    """Sentences that the model will meet, plus everyday ones so that other words split into few pieces."""
    rng = np.random.default_rng(0)
    for index in range(min(count, len(clips))):
        for _, _, text in clips.expressions(index, rng, 4):
            yield QUESTION.format(text)
            yield text
        yield from (SYSTEM, *(answer.replace("[SEG]", "").strip() for answer in ANSWERS))
    yield from EVERYDAY


def build_tokenizer(folder: Path, clips: Clips) -> int:
    """Write the tokenizer's four files; returns the vocabulary size with the added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()  # a file's place would be left in the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(clips),
        model_writer=written,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / FILES[0]).write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).get_piece_size()
    (folder / FILES[1]).write_text(json.dumps({token: pieces + k for k, token in enumerate(ADDED)}, indent=2))
    special = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / FILES[2]).write_text(json.dumps(special, indent=2))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "model_max_length": 4096,
        "padding_side": "left",
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {
            str(pieces + k): {"content": token, "lstrip": False, "rstrip": token in STRIPPING}
            for k, token in enumerate(ADDED)
        },
        **special,
    }
    (folder / FILES[3]).write_text(json.dumps(settings, indent=2))
    return pieces + len(ADDED)
