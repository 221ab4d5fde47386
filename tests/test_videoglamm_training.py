"""The training tool of the small video model, at toy size."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.mini.training.branches import run_branches
from backbones.parts import llama
from backbones.parts.tokenizer import IMAGE_TOKEN
from backbones.videoglamm.mini_training import judge, talk, teach, watch
from backbones.videoglamm.mini_training import train as train_mini
from backbones.videoglamm.mini_training.data import Clips, build_clips, seen_frames
from backbones.videoglamm.mini_training.model import pooled
from backbones.videoglamm.mini_training.prompt import ANSWERS, conversation
from backbones.videoglamm.mini_training.train import SEEING, Work
from backbones.videoglamm.preprocess import MEAN, STD
from backbones.videoglamm.settings import VideoGlamm
from harness.data.refclips.splits import painted

ROOT = Path(__file__).parent.parent
CLIPS = 8


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("work"), CLIPS, 0)


def test_clips_are_stored_as_painted(work: Work) -> None:
    clip = painted("train", 2)
    seen = seen_frames(len(clip.frames))
    assert (work.clips.frames[2] == clip.frames[seen]).all() and work.clips.count(2) == len(clip.actors)
    for k, actor in enumerate(clip.actors):
        assert ((work.clips.owner[2] == k + 1) == clip.masks[k, seen]).all()
        assert tuple(work.clips.ways[2, k]) == (*actor.start, *actor.end)
    drawn = [work.clips.expressions(2, np.random.default_rng(0), 3) for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0]


def test_more_clips_replace_fewer(tmp_path: Path) -> None:
    assert len(build_clips(tmp_path, 1)) == 1 and len(build_clips(tmp_path, 2)) == 2


def test_tokens_on_an_object() -> None:
    """CLIP's 12 x 12 cells lie on the middle square of a frame, the video encoder's 8 x 8 on all of it."""
    owner = np.zeros((4, 192, 240), dtype=np.uint8)
    owner[1, 32:48, 24 + 16 : 24 + 32] = 2  # one cell of CLIP's: row 2, column 1
    owner[3, :24, :30] = 1  # the first cell of the video encoder's
    found = talk.token_owners(owner)
    assert found.shape == (4 * 144 + 4 * 64, 4)
    assert np.flatnonzero(found[: 4 * 144, 1]).tolist() == [144 + 2 * 12 + 1]
    assert np.flatnonzero(found[4 * 144 :, 0]).tolist() == [3 * 64]
    frames = talk.token_frames()
    assert frames[144 + 25] == 1 and frames[4 * 144 + 3 * 64] == 3


def test_pool() -> None:
    """Blocks of four neighbours become their mean, frame by frame."""
    tokens = torch.arange(2 * 16).float().view(1, 32, 1)
    means = pooled(tokens, 4, 2)[0, :, 0].tolist()
    assert means == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]


def test_prompt_in_ids(work: Work) -> None:
    """The answer follows the prompt without a change of it."""
    text = "The RED star"
    asked = work.words.encode(conversation(text))
    answered = work.words.encode(conversation(text, ANSWERS[0]))
    assert answered[: len(asked)] == asked and work.words.seg_id in answered[len(asked) :]
    places = [k for k, token in enumerate(asked) if token == IMAGE_TOKEN]
    assert len(places) == 1
    added = work.words.tokens()
    assert asked[1] == added["<|system|>"] and asked[-1] == added["<|assistant|>"]
    assert "the red star" in work.words.decode(asked[places[-1] + 1 :])
    assert not {added["<|endoftext|>"], work.words.pad_id} & set(answered)


def test_branches_are_sequences_of_their_own(work: Work) -> None:
    """What is read of an answer behind shared visual tokens is what a sequence of its own gives; every [SEG]
    is read where it is predicted."""
    picks = np.arange(2)
    drawn = talk.Conversations(work.words).draw(work.clips, picks, 3, np.random.default_rng(0))
    visual = torch.randn(2, 50, 128, generator=torch.Generator().manual_seed(0))
    llm = work.model.language_model
    with torch.no_grad():
        states, _, _, _ = run_branches(llm, visual, drawn, talk.LOOKING, talk.NAMING)
        for b, e in np.ndindex(2, 3):
            words = [llama.embed_ids(llm, ids) for ids in (drawn.prefix, drawn.lead, drawn.ids[b, e])]
            hidden = torch.cat([words[0], visual[b], *words[1:]])[None]
            by = llama.rotary(llm, torch.arange(hidden.shape[1])[None], hidden.dtype)
            for layer in llama.layers(llm):
                hidden = layer(hidden, by)
            said = drawn.read[b, e] >= 0
            read = drawn.read[b, e, said] - drawn.ids.shape[-1]
            torch.testing.assert_close(
                states[b, e, said], llama.norm(llm, hidden)[0, read], rtol=1e-4, atol=1e-4
            )
            assert (drawn.ids[b, e, drawn.read[b, e, said] + 1] == drawn.labels[b, e, said]).all()
            assert drawn.labels[b, e, said][-1] == work.words.seg_id
            assert (drawn.target[b, e] >= 0).sum() == 1


def test_answers_are_written_token_by_token(work: Work) -> None:
    """Greedy answers equal those of whole sequences, and the prompt is read before [SEG]."""
    parts = work.model
    visual = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(1))
    texts = ["the star", "the small red one moving left"]
    kept = parts.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            parts.lm_head.weight[work.words.seg_id] *= 3  # so that it is said sooner or later
            for text, (prompt, ids) in zip(
                texts, judge.written(parts, work.words, visual, texts), strict=True
            ):
                asked = work.words.encode(conversation(text))
                first = asked.index(IMAGE_TOKEN)
                alone: list[int] = []
                while len(alone) < judge.MOST_NEW and work.words.seg_id not in alone:
                    llm = parts.language_model
                    before, behind = (
                        llama.embed_ids(llm, torch.tensor(part))
                        for part in (asked[:first], [*asked[first + 1 :], *alone])
                    )
                    hidden = torch.cat([before, visual[0], behind])[None]
                    by = llama.rotary(llm, torch.arange(hidden.shape[1])[None], hidden.dtype)
                    for layer in llama.layers(llm):
                        hidden = layer(hidden, by)
                    state = llama.norm(llm, hidden)[0, -1]
                    alone.append(int(parts.lm_head(state).argmax()))
                assert ids == alone
                assert (prompt is not None) == (alone[-1] == work.words.seg_id)
                if prompt is not None:
                    torch.testing.assert_close(prompt, parts.text_hidden_fcs(state), rtol=1e-4, atol=1e-4)
    finally:
        parts.lm_head.weight.data = kept


def test_video_encoder_begins_with_looking_into_each_frame(work: Work) -> None:
    encoder = work.model.video_tower
    with torch.no_grad():
        states = encoder.pos_embed.expand(1, -1, -1)
        block = encoder.blocks[0]
        query, key, _ = block.attn.qkv(block.norm1(states)).chunk(3, dim=-1)
        query, key = (
            part.unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (block.attn.q_norm(query), block.attn.k_norm(key))
        )
        share = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)[0, :, 1:, 1:]
    for head in range(4):
        frames = share[head].unflatten(-1, (4, -1)).sum(-1).mean(0)
        assert frames.argmax() == head and frames[head] > 0.5


def test_masks_are_judged_frame_by_frame() -> None:
    """Empty where the object is gone counts as right."""
    truth = np.zeros((3, 4, 4), dtype=bool)
    truth[0, :2], mask = True, np.zeros((3, 4, 4), dtype=bool)
    mask[0, :1], mask[1] = True, True
    assert judge.overlap(mask, truth) == pytest.approx((0.5 + 0 + 1) / 3)


def test_mask_loss_knows_the_right_masks() -> None:
    truth = torch.zeros(2, 192, 240, dtype=torch.bool)
    truth[0, 60:100, 60:120] = True  # the second frame is without the object
    right = torch.full((2, 64, 64), -12.0)
    right[0, 16 : round(100 / 3.75), 16:32] = 12.0
    good, figures = teach.half_size_loss(right, truth)
    bad, _ = teach.half_size_loss(-right, truth)
    assert good < bad / 20 and figures["iou"] > 0.9 and figures["silent"] == 1.0


def test_video_pixels_are_the_whole_frame() -> None:
    frame = np.zeros((1, 192, 240, 3), dtype=np.uint8)
    frame[:, :, 120:] = 255
    pixels = watch.video_pixels(frame)[0] * STD + MEAN
    assert pixels.shape == (3, 96, 96)
    assert pixels[:, :, :47].abs().max() < 1e-5 and (pixels[:, :, 49:] - 1).abs().max() < 1e-5


def train(monkeypatch: pytest.MonkeyPatch, work: Path, *words: str) -> None:
    given = ["train", "--work", str(work), "--clips", str(CLIPS), *words]
    monkeypatch.setattr(sys, "argv", given)
    train_mini.main()


def test_every_stage_trains_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of everything; a stopped stage goes on where it was; the files have the official names."""
    for stage in (teach.WaySegmentation, watch.Watching):
        monkeypatch.setattr(stage.__init__, "__defaults__", (2,))  # smaller batches
    monkeypatch.setitem(talk.Talking.__init__.__kwdefaults__, "batch", 2)
    train(monkeypatch, tmp_path, "--steps", "ways=2,watch=2,talk=2")
    for stage in ("ways", "watch", "talk"):
        with (tmp_path / f"{stage}.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        assert rows[-1]["step"] == "2" and np.isfinite(float(rows[-1]["loss"]))
    folder = tmp_path / "weights" / "checkpoint"
    first = (folder / "model.safetensors").read_bytes()
    train(monkeypatch, tmp_path, "--stages", "export")
    assert (folder / "model.safetensors").read_bytes() == first
    train(monkeypatch, tmp_path, "--stages", "talk,export", "--steps", "talk=3")
    assert torch.load(tmp_path / "talk.pt", weights_only=True)["step"] == 3
    assert (folder / "model.safetensors").read_bytes() != first
    check_layout(folder, tmp_path)


def check_layout(folder: Path, work: Path) -> None:
    """Official names, half precision, and what was learned; the family's own reader takes it."""
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "VideoGPT+" and config["num_frames"] == 4
    state = load_file(folder / "model.safetensors")
    assert not [name for name in state if "image_vision_tower" in name]
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    again = Work(work, CLIPS, 0)
    talking = talk.Talking(again.model, again.ways.code, again.clips, again.words)
    for stage, module in (("ways", again.ways), ("watch", again.watching), ("talk", talking)):
        again.restore(stage, module)
    backbone = backbones.load(VideoGlamm(str(folder), str(SEEING / "clip"), branch="framewise"))
    loaded = backbone.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert (tensor.half().float() == loaded[name].float()).all(), name


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_unknown_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the module's entry, as a command has it."""
    monkeypatch.setattr(sys, "argv", ["train", "--work", str(tmp_path), "--stages", "sleep"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("backbones.videoglamm.mini_training.train", run_name="__main__")
    assert stopped.value.code == 2 and "sleep" in capsys.readouterr().err


def test_clips_have_their_own_type(work: Work) -> None:
    assert isinstance(work.clips.first(3), Clips) and len(work.clips.first(3)) == 3
