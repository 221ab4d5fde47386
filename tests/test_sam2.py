"""SAM2 with a text prompt: one encoding for all, prompts apart, bounded memory, full size, geometry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from backbones.parts import sam2 as sams
from backbones.parts.sam2 import Frame, Tracker, build_sam2, check_inside, encode_frame, framewise
from backbones.parts.sam2_frames import masks_to_frame
from backbones.parts.sam2_keys import COPY, official_name, own_name
from backbones.parts.sam2_sizes import MEMORY_WIDTH, Sam2Numbers
from pruners.errors import UserError
from tests.golden.official_weights import drawn
from tests.golden.tiny_video import FOLDER, SAM2, frames, golden, load_official, official_sam2, sam2, text

SMALL = Sam2Numbers(
    image=64,
    width=128,
    embed=8,
    heads=1,
    blocks=(1, 1, 2, 1),
    global_blocks=(3,),
    windows=(8, 4, 4, 4),
    memory_layers=2,
    memory_hidden=64,
    decoder_heads=4,
    decoder_hidden=64,
)
NEAR = 2e-3  # of logits between -100 and 100
LONG = 20  # frames: more than the 16 that are remembered by a vector


def small_weights(model: Any) -> dict[str, Tensor]:
    """Weights of every size, by the golden sets' rule."""
    return {
        name: torch.from_numpy(drawn(7, official_name(name), tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def small() -> Any:
    """A model of five blocks, which sees no object of the first two prompts on the first frame."""
    model = build_sam2(SMALL, "sdpa")
    model.load_state_dict(small_weights(model))
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.weight *= 20
        model.mask_decoder.pred_obj_score_head.proj_out.bias -= 18
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    """(T, 3, h, w)."""
    return torch.randn(LONG, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prompts() -> Tensor:
    """(B, P)."""
    return 4 * torch.randn(3, SMALL.width, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories stay in float32: in bfloat16, values that differ by float32's last digit may come apart."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


def track(model: Any, encoded: list[Frame], prompts: Tensor) -> Tensor:
    """(T, B, h, w)."""
    tracker = Tracker(model, prompts)
    return torch.stack([tracker.step(frame) for frame in encoded])


def encode(model: Any, clip: Tensor) -> list[Frame]:
    with torch.no_grad():
        return [encode_frame(model, frame[None]) for frame in clip]


# -- prompts and frames


@pytest.mark.usefixtures("unrounded")
def test_prompts_of_a_batch_do_not_see_each_other(small: Any, clip: Tensor, prompts: Tensor) -> None:
    encoded = encode(small, clip)
    together = track(small, encoded, prompts)
    for index, prompt in enumerate(prompts):
        alone = track(small, encoded, prompt[None])[:, 0]
        torch.testing.assert_close(together[:, index], alone, rtol=0, atol=NEAR)
    assert not torch.allclose(together[1:, 0], together[1:, 2], atol=100 * NEAR), "prompts matter"
    torch.testing.assert_close(together[1:, 0], together[1:, 1], rtol=0, atol=NEAR)  # neither was seen
    absent = (together == sams.ABSENT).flatten(2).all(2)
    assert absent[0].tolist() == [True, True, False] and not absent[1:].any()


def test_a_text_vector_matters_beyond_its_frame() -> None:
    """The golden text and another one, in one batch and each by itself, on the golden model."""
    model = sam2()
    with torch.no_grad():
        encoded = frames(model)[:4]
    both = torch.cat([text(), -text()])
    together = track(model, encoded, both)
    for index in range(2):
        torch.testing.assert_close(
            together[:, index], track(model, encoded, both[index, None])[:, 0], rtol=0, atol=1e-2
        )
    assert all(not torch.equal(first > 0, second > 0) for first, second in together)
    expected = golden("sam2_text_tiny")["video_present"][:4]
    assert np.array_equal((masks_to_frame(together[:, 0], (60, 90)) > 0).numpy(), expected > 0)


def test_a_frame_is_encoded_once_for_all(small: Any, clip: Tensor, prompts: Tensor) -> None:
    """Neither branch runs the image encoder, and several frames at once are encoded as each by itself."""
    calls: list[int] = []
    hook = small.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded = encode(small, clip[:4])
    trackers = [Tracker(small, prompts), Tracker(small, prompts[:1])]
    with torch.no_grad():
        for frame in encoded:
            for tracker in trackers:
                tracker.step(frame)
            framewise(small, frame, prompts)
        assert len(calls) == 4
        batch = encode_frame(small, clip[:4])
    hook.remove()
    torch.testing.assert_close(batch.top, torch.cat([frame.top for frame in encoded]), rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.fine[1], torch.cat([frame.fine[1] for frame in encoded]))


def test_framewise_takes_one_frame_for_all_or_one_for_each(small: Any, clip: Tensor, prompts: Tensor) -> None:
    encoded = encode(small, clip[:3])
    with torch.no_grad():
        each = framewise(small, encode_frame(small, clip[:3]), prompts)
        for index, frame in enumerate(encoded):
            alone = framewise(small, frame, prompts)
            assert alone.shape == (3, SMALL.low, SMALL.low)
            torch.testing.assert_close(each[index], alone[index], rtol=0, atol=1e-3)


def test_unstable_masks_give_way_to_the_best_of_the_others(small: Any, clip: Tensor, prompts: Tensor) -> None:
    """In evaluation alone, as a threshold that none or all pass shows."""
    (frame,) = encode(small, clip[:1])
    decoder = small.mask_decoder
    before = decoder.dynamic_multimask_stability_thresh
    masks = {}
    with torch.no_grad():
        for threshold in (0.0, 2.0):
            decoder.dynamic_multimask_stability_thresh = threshold
            masks[threshold] = framewise(small, frame, prompts)
        decoder.train()
        in_training = framewise(small, frame, prompts)
        decoder.eval()
    decoder.dynamic_multimask_stability_thresh = before
    assert not torch.equal(masks[0.0] > 0, masks[2.0] > 0)
    assert torch.equal(masks[0.0], in_training)


def test_framewise_is_trainable(clip: Tensor, prompts: Tensor) -> None:
    """A loss on masks reaches the text vectors and the decoder, which is all that is trained officially."""
    model = build_sam2(SMALL, "sdpa")
    model.load_state_dict(small_weights(model))
    model.requires_grad_(False)
    model.mask_decoder.requires_grad_(True)
    given = prompts.clone().requires_grad_()
    framewise(model, encode_frame(model, clip[:1]), given).square().mean().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None and bool((given.grad.abs().sum(1) > 0).all())
    assert bool(model.mask_decoder.transformer.layers[0].mlp.proj_in.weight.grad.any())


# -- memory


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nest."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for one in value:
            yield from tensors(one)


def held(tracker: Tracker) -> tuple[int, int]:
    """Tensors that a tracker holds, and their bytes; its model is not its own."""
    found = [one for name, value in vars(tracker).items() if name != "model" for one in tensors(value)]
    return len(found), sum(one.numel() * one.element_size() for one in found)


def test_what_is_remembered_is_bounded(small: Any, clip: Tensor, prompts: Tensor) -> None:
    tracker, sizes = Tracker(small, prompts), []
    with torch.no_grad():
        for frame in encode(small, clip):
            tracker.step(frame)
            sizes.append(held(tracker))
    assert len(set(sizes[:16])) == 16, "it grows up to the 16 frames"
    assert len(set(sizes[15:])) == 1, "and no longer"
    places, vectors = 4 * 4 * MEMORY_WIDTH, SMALL.width * 4
    features, pointers = 7 * 3 * places * 2, 16 * 3 * vectors  # bfloat16 and float32, three prompts
    assert sizes[-1] == (7 + 16 + 2, features + pointers + 3 * vectors + places * 4)


def test_no_graph_is_remembered(clip: Tensor, prompts: Tensor) -> None:
    """Neither weights nor prompts that are trained elsewhere keep earlier frames' graphs alive."""
    model = build_sam2(SMALL, "sdpa").eval()
    tracker = Tracker(model, prompts.clone().requires_grad_())
    for frame in clip[:2]:
        assert not tracker.step(encode_frame(model, frame[None])).requires_grad
    assert all(one.is_leaf for one in tensors(vars(tracker)["_features"]))
    assert not any(one.requires_grad for one in tensors(vars(tracker)["_pointers"]))


def test_a_clip_of_one_frame_is_its_first_frame(small: Any, clip: Tensor, prompts: Tensor) -> None:
    encoded = encode(small, clip[:5])
    one = track(small, encoded[:1], prompts)
    assert one.shape == (1, 3, SMALL.low, SMALL.low)
    assert torch.equal(one[0], track(small, encoded, prompts)[0])


def test_memory_and_order_matter(small: Any, clip: Tensor, prompts: Tensor) -> None:
    """The same frame is segmented otherwise after other frames."""
    encoded = encode(small, clip[:4])
    usual = track(small, encoded, prompts)[-1]
    other = track(small, [encoded[1], encoded[0], *encoded[2:]], prompts)[-1]
    assert not torch.allclose(usual, other, atol=1e-2)


def session(clip: Tensor, encoded: list[Frame]) -> Any:
    """transformers' own session, given the frames' features, with one point that is none."""
    made = Sam2VideoInferenceSession(
        video=clip,
        video_height=64,
        video_width=64,
        dtype=torch.float32,
        max_vision_features_cache_size=len(clip),
    )
    for index, frame in enumerate(encoded):
        flat = [one.flatten(2).permute(2, 0, 1) for one in (*frame.fine, frame.top, frame.place)]
        given = {"vision_feats": flat[:3], "vision_pos_embeds": flat[3:]}
        made.cache.cache_vision_features(index, given)
    made.obj_id_to_idx(0)
    label = -torch.ones(1, 1, 1, dtype=torch.int32)
    made.add_point_inputs(0, 0, {"point_coords": torch.zeros(1, 1, 1, 2), "point_labels": label})
    made.obj_with_new_inputs = [0]
    return made


@pytest.mark.usefixtures("unrounded")
def test_long_clips_are_tracked_as_in_a_session(
    small: Any, clip: Tensor, prompts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip longer than what is remembered, as transformers tracks it, prompt by prompt."""
    whole = Sam2VideoModel._from_config(sams.sam2_config(SMALL), attn_implementation="sdpa")
    state = small.state_dict()
    rows = [state.pop(f"prompt_encoder.point_embed.{row}.weight") for row in range(4)]
    whole.load_state_dict({**state, "prompt_encoder.point_embed.weight": torch.cat(rows)})
    whole.eval()
    encoded = encode(small, clip)
    ours = track(small, encoded, prompts)
    plain = whole.prompt_encoder.forward
    for index, prompt in enumerate(prompts):

        def prompted(*args: Any, vector: Tensor = prompt, **kwargs: Any) -> tuple[Tensor, Tensor]:
            sparse, dense = plain(*args, **kwargs)
            return torch.cat([sparse, vector.expand(1, 1, 1, -1)], dim=2), dense

        given = session(clip, encoded)
        with monkeypatch.context() as patch:
            patch.setattr(whole.prompt_encoder, "forward", prompted)
            masks = [whole(given, frame_idx=0).pred_masks]
        masks += [found.pred_masks for found in whole.propagate_in_video_iterator(given, start_frame_idx=1)]
        torch.testing.assert_close(ours[:, index], torch.cat(masks)[:, 0], rtol=0, atol=NEAR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    model = sam2().to(dtype)
    with torch.no_grad():
        clip = torch.from_numpy(golden("sam2_text_tiny")["video32"])[:3].repeat_interleave(8, -1)
        encoded = [encode_frame(model, one[None].to(dtype)) for one in clip.repeat_interleave(8, -2)]
    masks = track(model, encoded, text().to(dtype))[:, 0]
    assert masks.dtype == dtype and bool(masks.isfinite().all())
    expected = golden("sam2_text_tiny")["video_present"][:3]
    same = (masks_to_frame(masks, (60, 90)) > 0).numpy() == (expected > 0)
    assert same.mean() > 0.9


# -- sizes and names


def test_full_size_is_the_official_one() -> None:
    """Hiera-L builds on the meta device, and its official names and shapes are the exporter's."""
    with torch.device("meta"):
        model = build_sam2(Sam2Numbers(), "sdpa")
    assert all(tensor.is_meta for tensor in model.parameters())
    assert sum(tensor.numel() for tensor in model.parameters()) == 224_430_130
    listed = json.loads((FOLDER / "sam2_hiera_l.json").read_text())
    built = {
        official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items() if name != COPY
    }
    assert built == listed and len(listed) == 900
    assert {own_name(name) for name in listed} == {one for one in model.state_dict() if one != COPY}


def test_a_model_of_the_meta_device_is_filled() -> None:
    with torch.device("meta"):
        model = build_sam2(SAM2, "sdpa")
    scale = re.compile(r"(memory_encoder\.fuser\.layers\.\d)\.weight")
    stored = {scale.sub(r"\1.gamma", name): tensor for name, tensor in official_sam2().items()}
    assert sum(name.endswith(".gamma") for name in stored) == 2
    load_official(model, stored)
    left = [name for name, one in (*model.named_parameters(), *model.named_buffers()) if one.is_meta]
    assert not left
    codes = model.shared_image_embedding, model.prompt_encoder.shared_embedding
    assert codes[0].positional_embedding is codes[1].positional_embedding
    usual = sam2()
    for (name, one), (_, other) in zip(model.named_buffers(), usual.named_buffers(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype, name
    with torch.no_grad():
        masks = [framewise(one, frames(one)[0], text()) for one in (model, usual)]
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": 250}, "image 250"),
        ({"width": 100}, "width 100"),
        ({"blocks": (1, 2, 3)}, r"blocks \(1, 2, 3\)"),
        ({"global_blocks": (4, 7)}, r"global_blocks \(4, 7\)"),
        ({"global_blocks": (3, 5)}, r"global_blocks \(3, 5\)"),
        ({"memories": 1, "heads": 3}, "embed 16, memories 1"),
        ({"decoder_heads": 7}, "decoder_heads 7"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sam2Numbers(**{**vars(SAM2), **wrong})


def test_another_inside_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a release of transformers renamed is named, with the versions that are known."""
    model = build_sam2(SMALL, "sdpa")
    with pytest.raises(
        UserError, match=r"lacks prompt_encoder.point_embed.weight; pip install 'transformers.*>=5"
    ):
        check_inside(model)  # this project's own change to it
    monkeypatch.setattr(sams, "ATTENDS", ("queries", "memory"))
    with pytest.raises(UserError, match=r"lacks memory_attention\(queries, memory, ..., num_\w+\); pip"):
        build_sam2(SMALL, "sdpa")
    monkeypatch.setattr(sams, "INSIDE", (*sams.INSIDE, "memory_bank.features"))
    with pytest.raises(UserError, match=r"Sam2VideoModel of transformers \S+ lacks memory_bank.features"):
        build_sam2(SMALL, "sdpa")


def test_flash_attention_becomes_sdpa() -> None:
    model: nn.Module = build_sam2(SMALL, "flash_attention_2")
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
