"""Builds glamm-mini's two tokenizers from RefShapes' own language, in the formats of the official files."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from backbones.glamm.conversation import ANSWER_TEMPLATES, QUESTION_TEMPLATES, SYSTEM
from backbones.mini.training.data import train_scene

ADDED = ("<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>")
LLAMA_PIECES = 640
CLIP_PIECES = 900


@cache
def corpus(scenes: int = 400) -> tuple[str, ...]:
    """`written` once: both tokenizers are made of it, and painting the scenes takes longer than they do."""
    return tuple(written(scenes))


def written(scenes: int) -> Iterator[str]:
    """Sentences that the model will meet, plus everyday ones so that other words split into few pieces."""
    rng = np.random.default_rng(0)
    for index in range(scenes):
        for pairs in train_scene(index).expressions.values():
            for _, text in pairs:
                question = QUESTION_TEMPLATES[int(rng.integers(len(QUESTION_TEMPLATES)))].format(text)
                answer = ANSWER_TEMPLATES[int(rng.integers(len(ANSWER_TEMPLATES)))].replace("[SEG]", "")
                yield (
                    f"{SYSTEM} USER: The provides an overview of the picture.\n{question} ASSISTANT: {answer}"
                )
                yield text
    yield from (
        "the man in the red shirt",
        "woman holding a white umbrella",
        "bowl near the tree",
        "second dog from left",
    )


def build_llama_tokenizer(folder: Path) -> int:
    """Write tokenizer.model and its three json files; returns the vocabulary size with the added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()  # a file's place would be left in the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        model_type="bpe",
        vocab_size=LLAMA_PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=8192,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "added_tokens.json").write_text(
        json.dumps({token: LLAMA_PIECES + k for k, token in enumerate(ADDED)}, indent=2)
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "model_max_length": 1536,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return LLAMA_PIECES + len(ADDED)


def build_clip_tokenizer(folder: Path) -> tuple[int, int, int]:
    """Write vocab.json, merges.txt and the json files; returns (vocabulary size, start id, end id)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    words = Counter(word for line in corpus() for word in line.split())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_PIECES - 2 - len(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(
        (f"{word} " * min(count, 50) for word, count in sorted(words.items())), trainer
    )
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [first + second for first, second in merges if first + second not in set(pieces)]
    vocab = {piece: k for k, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    settings = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(vocab), vocab["<|startoftext|>"], vocab["<|endoftext|>"]
