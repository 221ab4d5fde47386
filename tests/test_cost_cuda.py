"""A card that is not the first one: whatever asks CUDA anything asks it about the device that was given. CUDA
is played here by a few numbers, one set of them for every card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import backbones
from backbones import device as devices
from harness.cost import load_costs, measure, meters
from harness.cost.lines import lines_of
from harness.cost.store import COSTS, Ledgers
from harness.reproduce import estimates
from pruners import parse
from tests import tiny_glamm

SECOND = "cuda:1"


class Cards:
    """Two cards. What is asked without a device is of the current one, as with torch.

    Attributes:
        clock: milliseconds of work that each was given.
        held, peak: bytes.
        waited: for which cards the host waited.
        current: the card that is meant where none is named.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock, self.held, self.peak = [0.0, 0.0], [500, 70], [500, 70]
        self.waited: list[int] = []
        self.current = 0
        cards = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: Any = None) -> None:
                self.of = cards.current if stream is None else stream.of
                self.at = cards.clock[self.of]

            def elapsed_time(self, later: Any) -> float:
                assert later.of == self.of and self.of in cards.waited, "read before its card was done"
                return float(later.at - self.at)

        for name, fake in {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "Event": Event,
            "current_stream": lambda place=None: SimpleNamespace(of=self.index(place)),
            "synchronize": lambda place=None: self.waited.append(self.index(place)),
            "set_device": self.set_device,
            "memory_allocated": lambda place=None: self.held[self.index(place)],
            "max_memory_allocated": lambda place=None: self.peak[self.index(place)],
            "reset_peak_memory_stats": self.reset,
            "get_device_name": lambda place=None: ("NVIDIA H100", "NVIDIA H200")[self.index(place)],
            "get_device_properties": lambda place: SimpleNamespace(total_memory=80 + self.index(place)),
        }.items():
            patch.setattr(torch.cuda, name, fake)

    def index(self, place: Any) -> int:
        """Number of the card that is meant."""
        found = None if place is None else torch.device(place).index
        return self.current if found is None else found

    def set_device(self, place: Any) -> None:
        self.current = self.index(place)

    def reset(self, place: Any = None) -> None:
        self.peak[self.index(place)] = self.held[self.index(place)]

    def work(self, ms: float, held: int, card: int = 1) -> None:
        """Work of one card, with so many bytes while it lasts."""
        self.clock[card] += ms
        self.peak[card] = max(self.peak[card], self.held[card] + held)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    return Cards(monkeypatch)


def test_events_are_of_the_given_cards_stream(cards: Cards) -> None:
    clock = meters.Clock(SECOND)
    with clock("prefill"):
        cards.work(7.0, 0)
        cards.work(100.0, 0, card=0)  # of somebody else
    clock.finish()
    assert cards.waited == [1]
    assert clock.spent() == {"prefill": 7.0} and clock.whole() == 7.0


def test_memory_is_the_given_cards(cards: Cards) -> None:
    watch = meters.Peaks(meters.DeviceMemory(SECOND))
    with watch("prefill"):
        cards.work(1.0, 40)
        cards.work(1.0, 9000, card=0)
    assert watch.rise == {"prefill": 40} and watch.top == 40


def test_costs_of_a_run_on_the_second_card(
    cards: Cards, glamm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes are whole, for kernels of one stage are launched while those of the one before run; threads of
    the host stay as they are."""
    backbone: Any = tiny_glamm.load(glamm_folder)
    staged = backbone.staged
    inputs = staged.prepare(tiny_glamm.picture(64, 64), (tiny_glamm.TURN,), "sample")
    lines = lines_of(parse("uniform"), (64,), 0, backbone.grid, backbone.num_layers)
    forward = type(staged).forward

    def on_card(self: Any, *given: Any, **named: Any) -> Any:
        budget, stage = given[2], given[3] if len(given) > 3 else nullcontext

        @contextmanager
        def working(name: str) -> Iterator[None]:
            with stage(name):
                cards.work(float(budget) if name == "prefill" else 1.0, budget)
                yield

        return forward(self, *given[:3], working, *given[4:], **named)

    monkeypatch.setattr(type(staged), "forward", on_card)
    monkeypatch.setattr(measure, "second", lambda *given: 1)  # would make tensors there
    staged.device = backbone.device = SECOND
    chosen = measure.Measured(inputs, "sample", (0,))
    head = measure.header(backbone, staged, chosen, lines)
    assert head["device_name"] == "NVIDIA H200" and head["threads"] == torch.get_num_threads()
    ledgers = Ledgers(tmp_path, head)
    measure._measure(ledgers, inputs, lines, staged, 2)
    assert set(cards.waited) == {1}
    costs = load_costs(tmp_path).set_index("pruner")
    assert (costs["stage.vision_ms"] > 0).all() and (costs["cuda_ms"] > costs["prefill_ms"]).all()
    assert costs["activation_peak_run"].to_dict() == {"none": 576, "uniform": 64}
    lines_written = (tmp_path / COSTS).read_text()
    assert lines_written.count('"kind": "round"') == 2 and '"fixed"' not in lines_written


@pytest.mark.parametrize(("device", "current"), [("cuda:1", 1), ("cuda", 0), ("cpu", 0)])
def test_a_loaded_model_makes_its_card_the_current_one(
    cards: Cards, monkeypatch: pytest.MonkeyPatch, device: str, current: int
) -> None:
    """Before anything is put there: pinned memory, random states and NCCL know no other way to be told."""
    seen: list[tuple[str, int]] = []
    settings = backbones.one("glamm-mini")

    def load(self: Any, how: backbones.Runtime) -> Any:
        seen.append((how.device, cards.current))

    monkeypatch.setattr(type(settings), "load", load)
    backbones.load(settings, device=device)
    assert seen == [(device, current)]


def test_estimates_are_of_the_card_that_is_asked_for(cards: Cards) -> None:
    for device, name, memory in (("auto", "H100", 80), ("cuda", "H100", 80), ("cuda:1", "H200", 81)):
        sheet, there = estimates._card(device)
        assert sheet is not None and name in sheet.name and there == memory
    assert estimates._card("cuda:2") == (None, None)


def test_the_line_about_the_device_names_its_card(cards: Cards) -> None:
    assert devices.told(SECOND, SECOND) == "device: cuda:1 (NVIDIA H200)"
