"""What every registered backbone has to keep; one that is registered inherits these tests.

`pytest tests/test_backbone_conformance.py --plugin my_backbone.py` runs them on a file's backbones alone, and
`--backbones "mine(size=3)"` on what a list names. Backbones whose weights are not here are skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
import pruners
from backbones.base import Backbone, Encoding, Grounded, Row, Turn
from backbones.parts.clips import Frames, decoded
from backbones.parts.geometry import patch_of, seen
from backbones.registry import UnknownProtocol
from pruners import ImpossibleBudget, Need, Pruner, UserError, checks, plugins
from pruners.base import LAYER_KINDS
from tests.tiny_glamm import picture

HERE = Path(__file__).parent
SAMPLE = HERE / "sample_plugin" / "sample_backbone.py"


def tiny(name: str) -> str:
    """The official model at tiny size, as one writes it."""
    golden = HERE / "golden" / name
    return (
        f"{name}(checkpoint={str(golden / 'checkpoint')!r}, clip={str(golden / 'clip')!r}, "
        f"sam_dims={str(golden / 'sam_dims.json')!r})"
    )


TINY = {tiny(name): f"{name}-tiny" for name in ("glamm", "lisa")}
SIZES = ((60, 90), (48, 48))
TEXTS = ("the red star", "Small blue ring on the left", "it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every backbone, or those alone that --plugin brings or --backbones names."""
    if "text" in metafunc.fixturenames:
        given = metafunc.config.getoption("--plugin")
        added = [name for path in given or [SAMPLE] for name in plugins.import_plugin(path)["backbone"]]
        everything = (*backbones.names(), *TINY)
        asked = metafunc.config.getoption("--backbones") or ",".join((given and added) or everything)
        found = [settings.spec() for settings in backbones.parse(asked)]
        names = [TINY.get(text, text) for text in found]
        metafunc.parametrize("text", found, ids=names)


@cache
def loaded(text: str, batch_size: int = 16) -> Backbone | str:
    """The backbone, or why it is not here."""
    try:
        return backbones.load(text, batch_size=batch_size)
    except UserError as error:
        return str(error)


@pytest.fixture
def backbone(text: str) -> Backbone:
    found = loaded(text)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def encoded(backbone: Backbone, sizes: Sequence[tuple[int, tuple[int, int]]]) -> list[Encoding]:
    """Noise of some sizes: images, or clips of a few frames that the language model sees in two calls."""
    if backbone.medium == "image":
        return backbone.encode([picture(*size, seed) for seed, size in sizes])
    clips = [Frames.of([picture(*size, 9 * seed + k) for k in range(3)], 2) for seed, size in sizes]
    return backbone.encode_pixels([backbone.preprocess_clip(clip) for clip in clips])


@cache
def encodings(text: str) -> list[Encoding]:
    return encoded(loaded(text), list(enumerate(SIZES)))  # type: ignore[arg-type]


def drawn(result: Grounded, encoding: Encoding) -> torch.Tensor:
    """What a row's masks are made of: logits of an image, masks of a clip's frames."""
    if result.runs is None:
        return result.logits
    frames = [decoded(one, *encoding.original) for runs in result.runs for one in runs]
    return torch.from_numpy(np.concatenate(frames)).float()


def served(backbone: Backbone) -> list[Pruner]:
    """All pruners that it can serve."""
    every = [one for one in pruners.parse("all") if not backbone.lacks(one)]
    return [one for one in every if budget_of(one, backbone)]


def budget_of(pruner: Pruner, backbone: Backbone) -> int:
    """A quarter of the tokens or a little more, if that cannot be averaged; 0 where a language model of few
    layers allows a pruner nothing."""
    patches = backbone.grid[0] * backbone.grid[1]
    for budget in (patches,) if pruner.name == "none" else range(patches // 4, patches):
        with suppress(ImpossibleBudget):
            backbone.stated(pruner, budget, patches, backbone.num_layers)
            return budget
    return 0


def row_of(backbone: Backbone, encoding: Encoding, turns: tuple[Turn, ...], pruner: Pruner) -> Row:
    height, width = encoding.original
    truth = np.zeros((1, height, width), dtype=bool)
    truth[:, height // 4 : height // 2, width // 3 : width // 2] = True
    if backbone.medium == "video":
        truth = np.repeat(truth[None], len(backbone.regions_of(encoding)), axis=0)
    budget = budget_of(pruner, backbone)
    if pruner.stage == "layer":
        return Row(encoding, turns, pruner, budget, ())
    views = backbone.views(encoding, turns, "sample", truth)
    selections = checks.select_views(pruner, views, budget, backbone.num_layers)
    return Row(encoding, turns, pruner, budget, selections)


@cache
def rows(text: str) -> list[Row]:
    """Both images under every pruner, about one expression and about all of them in one conversation; of two
    clips, which take longer, every pruner has one, and they are asked about one at a time."""
    backbone = loaded(text)
    assert isinstance(backbone, Backbone)
    several, of = (TEXTS, 1) if backbone.medium == "image" else (TEXTS[1:2], 2)
    talks = [(backbone.turn(TEXTS[0]),), tuple(map(backbone.turn, several))]
    return [
        row_of(backbone, encoding, turns, pruner)
        for number, (encoding, turns) in enumerate(zip(encodings(text), talks, strict=True))
        for pruner in served(backbone)[number % of :: of]
    ]


@cache
def answers(text: str) -> list[Grounded]:
    return list(loaded(text).ground_rows(rows(text)))  # type: ignore[union-attr]


# -- what it says of itself


def test_what_is_said_before_loading_holds_after(text: str, backbone: Backbone) -> None:
    settings = backbones.one(text)
    assert backbones.parse(settings.spec()) == [settings] and settings.reference
    assert backbone.name == settings.name or backbone.name.startswith(f"{settings.name}-")
    for fact in ("signals", "cuts_inside", "geometry", "protocols", "drawn", "answers"):
        assert getattr(backbone, fact) == getattr(settings, fact), fact
    assert len(backbone.fingerprint) == 16 and int(backbone.fingerprint, 16) >= 0
    assert min(backbone.grid) >= 1 and backbone.num_layers >= 1
    assert (backbone.device, backbone.dtype) == ("cpu", "float32")
    again = backbones.load(text)
    assert again.fingerprint == backbone.fingerprint
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)


def test_every_pruner_is_served_or_refused_in_a_sentence(backbone: Backbone) -> None:
    assert {"none", "random", "uniform"} <= {pruner.name for pruner in served(backbone)}
    for pruner in pruners.parse("all"):
        if reason := backbone.lacks(pruner):
            assert reason.startswith(pruner.spec()) and reason.endswith(".") and "\n" not in reason
            if backbone.medium == "image":
                with pytest.raises(UserError) as caught:
                    backbone.ground(picture(*SIZES[0]), TEXTS[0], pruner, budget_of(pruner, backbone))
                assert str(caught.value) == reason


# -- how it is asked


def test_conversations_follow_from_seed_and_sample(backbone: Backbone) -> None:
    for protocol in backbone.protocols:
        asked = [backbone.conversations("a:val:1", TEXTS, protocol, seed) for seed in (0, 0, *range(1, 20))]
        assert asked[0] == asked[1]
        assert (len(set(map(str, asked))) > 1) == (protocol in backbone.drawn)
        for talk in asked[0]:
            assert len(talk.turns) == len(talk.expressions) == len(set(talk.expressions)) >= 1
            assert set(talk.expressions) <= set(range(len(TEXTS)))
        assert backbone.conversations("a:val:1", (), protocol, 0) == []
    if "each" in backbone.protocols:
        talks = backbone.conversations("a:val:1", TEXTS, "each", 0)
        assert [talk.expressions for talk in talks] == [(k,) for k in range(len(TEXTS))]
        assert [talk.turns for talk in talks] == [(backbone.turn(one),) for one in TEXTS]
    with pytest.raises(UnknownProtocol, match=next(iter(backbone.protocols))):
        backbone.conversations("a:val:1", TEXTS, "no such protocol", 0)


def test_a_question_holds_the_expression(backbone: Backbone) -> None:
    for one in TEXTS:
        turn = backbone.turn(one)
        assert one.lower() in turn.question.lower() and "[SEG]" in turn.answer
    assert backbone.cut_off([backbone.turn(one).question for one in TEXTS]) == 0


# -- what it sees


def test_images_together_equal_images_alone(text: str, backbone: Backbone) -> None:
    for k, size in enumerate(SIZES):
        (alone,) = encoded(backbone, [(k, size)])
        other = encodings(text)[k]
        assert alone.original == other.original == size
        assert torch.equal(alone.embedding, other.embedding)
        for one, two in zip(alone.hidden_states, other.hidden_states, strict=True):
            assert torch.equal(one, two)


def test_views_are_of_the_declared_geometry(text: str, backbone: Backbone) -> None:
    for encoding in encodings(text):
        regions = backbone.regions_of(encoding)
        views = backbone.views(encoding, (backbone.turn(TEXTS[0]),), "sample")
        assert len(views) == len(regions) >= 1
        for number, (view, region) in enumerate(zip(views, regions, strict=True)):
            assert (view.number, view.of, view.grid) == (number, len(views), backbone.grid)
            # frames of a clip draw each for itself
            assert view.region == pytest.approx(region) and view.sample.startswith("sample")
            assert backbone.medium == "video" or view.sample == "sample"
            assert view.patches.shape == (backbone.grid[0] * backbone.grid[1], view.patches.shape[1])
            assert bool(view.patches.isfinite().all())
            assert view.cls is None or view.cls.shape == view.patches.shape[1:]


def test_signals_have_their_shapes(text: str, backbone: Backbone) -> None:
    """Those of `Need`, where the class token's row and column are there if there is one."""
    turns = tuple(map(backbone.turn, TEXTS))
    truth = np.ones((1, *SIZES[0]), dtype=bool)
    if backbone.medium == "video":
        truth = np.repeat(truth[None], len(backbone.regions_of(encodings(text)[0])), axis=0)
    (view, *_) = backbone.views(encodings(text)[0], turns, "sample", truth)
    patches, channels = view.patches.shape
    tokens = patches + (view.cls is not None)
    shapes = {
        "cls_attention": (view.num_heads, tokens),
        "cls_query": (channels,),
        "keys": (tokens, channels),
        "values": (tokens, channels),
        "attention": (view.num_heads, tokens, tokens),
        "received_attention": (view.num_heads, tokens),
        "hidden": (tokens, channels),
        "referent": (patches,),
    }
    assert view.cls is not None or not {"cls_attention", "cls_query"} & backbone.signals
    for kind in sorted(backbone.signals):
        found = view.signal(Need(kind, -1 if kind in LAYER_KINDS else None))
        assert bool(found.isfinite().all()), kind
        if kind in shapes:
            assert tuple(found.shape) == shapes[kind], kind
        elif "patches" in kind:
            assert found.ndim == 2 and len(found) == patches, kind
        elif kind == "text_embeds":
            assert len(found) == len(turns) and found.shape[1] == view.projected_patches.shape[1]
    if "attention" in backbone.signals:
        torch.testing.assert_close(view.attention(-1).mean(1), view.received_attention(-1))


def test_the_truth_is_shown_to_nobody_who_was_not_given_it(text: str, backbone: Backbone) -> None:
    if "referent" in backbone.signals:
        (view, *_) = backbone.views(encodings(text)[0], (backbone.turn(TEXTS[0]),), "sample")
        with pytest.raises(UserError, match="truth"):
            _ = view.referent


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (48, 48)])
def test_a_patch_finds_its_way_to_the_pixels_and_back(backbone: Backbone, size: tuple[int, int]) -> None:
    """Mask of a patch's pixels -> shares of the patches: its own is covered, and those far away are not."""
    rows, columns = backbone.grid
    patches = rows * columns
    regions = backbone.regions(*size)
    for number, region in enumerate(regions):
        patch = patch_of(size, region, backbone.grid)
        there = patch[patch >= 0]
        for k in {0, patches // 2 + columns // 2, patches - 1, columns - 1}:
            if not (there == k).any():
                continue
            # patches may be smaller than pixels: a block of three by three around it
            block = [
                r * columns + c
                for r in range(k // columns - 1, k // columns + 2)
                for c in range(k % columns - 1, k % columns + 2)
                if 0 <= r < rows and 0 <= c < columns
            ]
            share = backbone.patch_shares(np.isin(patch, block)[None], number, size)
            assert share.shape == (patches,) and float(share.min()) >= 0 and float(share.max()) <= 1
            assert float(share[k]) > 0.5
            row, column = torch.arange(patches) // columns, torch.arange(patches) % columns
            far = torch.maximum((row - k // columns).abs(), (column - k % columns).abs()) > 3
            assert not far.any() or float(share[far].max()) < 0.05
        whole = backbone.patch_shares(np.ones((1, *size), dtype=bool), number, size)
        nothing = backbone.patch_shares(np.zeros((1, *size), dtype=bool), number, size)
        assert float(nothing.max()) == 0
        if min(region) >= 0 and max(region) <= 1:
            assert float(whole.min()) == pytest.approx(1, abs=1e-3)
        bright = seen(size, whole.numpy(force=True) > 0.5, backbone.grid, [region])
        assert (bright == (patch >= 0)).mean() > 0.9


# -- what it answers


def test_lengths_are_what_the_pruners_state(text: str, backbone: Backbone) -> None:
    patches = backbone.grid[0] * backbone.grid[1]
    for row, result in zip(rows(text), answers(text), strict=True):
        views = len(backbone.regions_of(row.encoding))
        schedule = backbone.stated(row.pruner, row.budget, patches, backbone.num_layers)
        assert result.lengths == tuple(views * count for count in schedule), row.pruner
        assert not result.error
        made = drawn(result, row.encoding)
        masks = len(row.turns) if result.runs is None else 3 * len(row.turns)
        assert made.shape == (masks, *row.encoding.original)
        assert made.dtype == torch.float32 and bool(made.isfinite().all())
        if backbone.pooled == 1:
            assert len(result.retained) == result.tokens_final
        kept = result.retained[result.retained >= 0]
        assert len(kept.unique()) == len(kept) and (not len(kept) or int(kept.max()) < views * patches)
        if row.selections and row.pruner.stage != "both":
            offsets = [number * patches for number in range(views)]
            chosen = [
                one.indices + (one.indices >= 0) * offset
                for one, offset in zip(row.selections, offsets, strict=True)
            ]
            assert torch.equal(torch.cat(chosen), result.retained)


def test_a_row_alone_equals_the_row_in_company(text: str, backbone: Backbone) -> None:
    """Bit for bit, whatever else is in the batch."""
    some = slice(None, None, 2 if backbone.medium == "image" else 4)  # a clip's frames are encoded every time
    for row, result in list(zip(rows(text), answers(text), strict=True))[some]:
        (alone,) = backbone.ground_rows([row])
        assert torch.equal(drawn(alone, row.encoding), drawn(result, row.encoding)), row.pruner
        assert torch.equal(alone.retained, result.retained) and alone.lengths == result.lengths


def test_batch_sizes_change_nothing(text: str, backbone: Backbone) -> None:
    other = loaded(text, 1)
    assert isinstance(other, Backbone)
    for row, one, two in zip(rows(text), other.ground_rows(rows(text)), answers(text), strict=True):
        assert torch.equal(drawn(one, row.encoding), drawn(two, row.encoding))
        assert torch.equal(one.retained, two.retained)


def test_sharing_changes_no_more_than_the_last_digits(text: str, backbone: Backbone) -> None:
    for row, one, two in zip(
        rows(text), answers(text), backbone.ground_rows(rows(text), share=False), strict=True
    ):
        assert one.lengths == two.lengths
        assert torch.equal(one.retained, two.retained), row.pruner
        if one.runs is None:
            torch.testing.assert_close(one.logits, two.logits, atol=2e-3, rtol=1e-3)
        else:  # a logit of nearly 0 may change its side
            assert (drawn(one, row.encoding) != drawn(two, row.encoding)).float().mean() < 2e-3, row.pruner


def test_one_image_and_one_expression(backbone: Backbone) -> None:
    if backbone.medium == "video":
        pytest.skip("clips are asked about through the engine")
    for pruner in ("none", "uniform"):
        budget = backbone.grid[0] * backbone.grid[1] // 4
        found = backbone.ground(picture(*SIZES[0]), TEXTS[0], pruner, budget)
        assert found.mask.shape == SIZES[0] and found.mask.dtype == np.bool_
        assert found.kept.sum() == found.tokens_final and found.seconds > 0


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    """Give back the memory of what was loaded."""
    yield
    for one in (loaded, encodings, rows, answers):
        one.cache_clear()
