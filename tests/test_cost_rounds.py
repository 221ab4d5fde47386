"""Timed rounds: what all rows share is counted and timed once for all of them, and changes no figure of
theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.costs import Staged
from backbones.glamm.backbone import GlammBackbone
from backbones.videoglamm.budgets import PLACEMENTS
from harness import cost
from harness.cost import measure, meters
from harness.cost.lines import lines_of
from harness.cost.store import COSTS, NO_GAIN
from harness.engine import runner
from harness.store import journal
from pruners import parse
from tests import tiny_glamm, tiny_videoglamm
from tests.fake_backbone import write_data

METHODS = "none,fastv,dart,litelvlm,prumerge,holov,visionzip"


@pytest.fixture(scope="module")
def tiny(glamm_folder: Path) -> GlammBackbone:
    return tiny_glamm.load(glamm_folder)


def inputs_of(staged: Staged) -> measure.Inputs:
    truth = np.zeros((1, 64, 64), dtype=bool)
    truth[0, 10:40, 20:50] = True
    return staged.prepare(tiny_glamm.picture(64, 64), (tiny_glamm.TURN,), "sample", truth)


def lines_on(backbone: Any, text: str = METHODS, budget: int = 64) -> list[measure.Line]:
    able = [one for one in parse(text) if not backbone.lacks(one)]
    return lines_of(able, (budget,), 0, backbone.grid, backbone.num_layers, backbone.stated)


def check_own_stages(staged: Staged, inputs: measure.Inputs, lines: list[measure.Line]) -> None:
    """A pass without the fixed stages sees the same lengths and multiplies the same in all others; in a whole
    pass the fixed ones multiply the same whatever the pruner."""
    common = measure.Common.of(staged, inputs)
    assert set(staged.fixed) < set(staged.stages)
    for line in lines:
        whole = measure.count(staged, inputs, line)
        assert measure.count(staged, inputs, line, common) == whole, line.name
        counting = meters.counter()
        ledger = meters.mac_ledger(counting)
        with counting:
            passed = staged.forward(inputs, line.pruner, line.budget, ledger, seen=common.seen)
        assert passed.logits is None and passed.lengths == whole["lengths"]
        own = {name: spent for name, spent in whole["macs"].items() if name not in staged.fixed}
        assert ledger.spent() == own, line.name


def test_what_rows_share_is_counted_once_and_the_same(tiny: GlammBackbone) -> None:
    check_own_stages(tiny.staged, inputs_of(tiny.staged), lines_on(tiny))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_rows_share_of_a_clip_is_the_same(
    placement: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_videoglamm.write(tmp_path_factory.mktemp("clip"), sam2=placement == "direct")
    backbone = tiny_videoglamm.load(folder, placement=placement)
    staged = backbone.staged
    inputs = staged.prepare(tiny_videoglamm.clip(3), (backbone.turn("the red star"),), "sample")
    check_own_stages(staged, inputs, lines_on(backbone, "none,uniform,fastv,visionzip", 81))


def test_layers_without_a_cut_are_traced_once_per_length(
    tiny: GlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged, traced = tiny.staged, []
    counted: Callable[..., int] = meters.fvcore_macs

    def trace(*given: Any) -> int:
        traced.append(given[2].shape[1])
        return counted(*given)

    monkeypatch.setattr(meters, "fvcore_macs", trace)
    inputs = inputs_of(staged)
    common = measure.Common.of(staged, inputs)
    found = [measure.count(staged, inputs, line, common) for line in lines_on(tiny)]
    # those that cut, and one of 576 and of 64 tokens
    assert sorted(traced) == [64, 576, 576, 576]
    assert len({line["fvcore"] for line in found if line["pruner"] not in ("none", "fastv", "dart")}) == 1


def measured(backbone: Any, folder: Path, rounds: int = 2) -> list[dict[str, Any]]:
    """The lines of a run's costs."""
    root = write_data(folder / "data")
    plan = runner.Plan(tuple(parse("uniform,fastv")), (64,), (("refcoco", "val"),), "each", 1, 0, str(root))
    measure.measure_costs(plan, runner.prepare(plan, backbone), backbone, folder, rounds)
    return [json.loads(line) for line in (folder / COSTS).read_text().splitlines()]


def test_rounds_are_timed_on_one_thread(
    tiny: GlammBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run has: a row's milliseconds do not depend on how busy the machine was at its start."""
    threads, clock = [], measure.clock

    def noted(*given: Any) -> dict[str, float]:
        threads.append(torch.get_num_threads())
        return clock(*given)

    monkeypatch.setattr(measure, "clock", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        head, *lines = measured(tiny, tmp_path)
        assert set(threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert head["threads"] == 1
    rounds = [line for line in lines if line["kind"] == "round"]
    own = [stages for line in rounds for _, stages in line["ms"]]
    assert len(own) == 2 * (2 + measure.BASELINE_RUNS)
    assert not any(set(stages) & set(tiny.staged.fixed) for stages in own)
    assert [len(line["fixed"]) for line in rounds] == [measure.WHOLE_RUNS] * 2
    assert all(set(stages) == set(tiny.staged.fixed) for line in rounds for stages in line["fixed"])


def test_a_model_that_names_no_fixed_stages_is_timed_whole(
    tiny: GlammBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one from elsewhere may be, whose `forward` knows no more than the release's pass."""
    cls = type(tiny.staged)
    forward = cls.forward

    def whole(
        self: Any,
        inputs: Any,
        pruner: Any,
        budget: int,
        stage: measure.meters.Ledger | type[nullcontext[None]] = nullcontext,
        checked: bool = True,
    ) -> Any:
        return forward(self, inputs, pruner, budget, stage, checked)  # type: ignore[arg-type]

    monkeypatch.setattr(cls, "fixed", ())
    monkeypatch.setattr(cls, "forward", whole)
    _, *lines = measured(tiny, tmp_path)
    rounds = [line for line in lines if line["kind"] == "round"]
    assert not any("fixed" in line for line in rounds)
    assert all("vision" in stages and "mask_decoder" in stages for line in rounds for _, stages in line["ms"])
    (none, *_) = cost.load_costs(tmp_path).to_dict("records")
    assert none["stage.vision_ms"] > 0 and none["compute_ms"] > none["stage.vision_ms"]


def written(folder: Path, *rounds: tuple[dict[str, float], list[float]]) -> Path:
    """A cost file of rounds: milliseconds that are a row's own, and those that all rows share."""
    shape = dict.fromkeys(("width", "inner", "layers", "heads", "key_heads", "head_width", "vocabulary"), 1)
    head = {"schema": 1, "costs": "measured", "backbone": "b", "device": "cpu", "text": 10, "element": 4}
    lines: list[dict[str, Any]] = [head | {"shape": shape}]
    for name in rounds[0][0]:
        pruner, _, budget = name.partition("@")
        count = {"kind": "counts", "pruner": pruner, "budget": int(budget), "lengths": [10 + int(budget)]}
        lines.append(count | {"macs": {}, "peak": {"prefill": 1}})
    for number, (own, shared) in enumerate(rounds):
        ms = [[name, {"prefill": spent, "total": spent}] for name, spent in own.items()]
        fixed = [{"vision": spent - 1, "mask_decoder": 1.0} for spent in shared]
        lines.append({"kind": "round", "number": number, "ms": ms, "fixed": fixed})
    (folder / COSTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_whole_pass_is_what_is_shared_and_what_is_a_rows_own(tmp_path: Path) -> None:
    """Shared milliseconds of a round are its median, and are no reason why a row could be faster."""
    rounds = [
        ({"none@64": 40.0 + k, "fast@8": 20.0 + k, "even@8": 40.1 + k}, [60.0 + 9 * k, 61.0 + 9 * k, 90.0])
        for k in range(4)
    ]
    costs = cost.load_costs(written(tmp_path, *rounds)).set_index("pruner")
    ratios = [(101 + 10 * k) / (81 + 10 * k) for k in range(3)] + [(43 + 88) / (23 + 88)]
    assert costs.loc["fast", "speedup_total"] == pytest.approx(np.median(ratios))
    assert costs.loc["fast", "compute_ms"] == pytest.approx((91 + 101) / 2)
    assert costs.loc["fast", "stage.total_ms"] == costs.loc["fast", "compute_ms"]
    assert costs.loc["fast", "stage.vision_ms"] == costs.loc["none", "stage.vision_ms"] == (69 + 78) / 2
    # of whole passes one round's fast one took longer than another round's unpruned one
    assert costs["note"].to_dict() == {"none": "", "fast": "", "even": NO_GAIN}
    assert (costs["rounds"] == 4).all()
    raw = cost.cost_samples(tmp_path)
    assert set(raw["pruner"]) == {"none", "fast", "even", "every row"}
    assert len(raw[raw["pruner"] == "every row"]) == 4 * 3 * 2


def test_without_a_gpu_milliseconds_are_processor_time() -> None:
    """To which waiting for a neighbour adds nothing."""
    clock = meters.Clock("cpu")
    with clock("prefill"):
        time.sleep(0.2)
    with clock("lm_head"):
        begin = time.process_time()
        while time.process_time() < begin + 0.02:
            pass
    assert clock.spent()["prefill"] < 100 and clock.spent()["lm_head"] >= 20


def test_old_ledgers_times_are_of_another_clock(tmp_path: Path) -> None:
    """A machine that timed by the wall and one that timed by the processor are told apart."""
    from harness.cost.store import MACHINE, _clock

    assert "clock" in MACHINE
    found = [
        _clock({"schema": schema, "device": device}) for schema in (2, 3) for device in ("cpu", "cuda:1")
    ]
    assert found == ["wall time", "CUDA events", "processor time of one thread", "CUDA events"]


def test_a_bundle_has_the_costs_that_were_measured(
    tiny: GlammBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.bundle.content import _costs

    _, *lines = measured(tiny, tmp_path)
    found = _costs(tmp_path, "run")
    assert len(found["lines"]) == len(lines) > 0 and "prefill_ms" in found["conventions"]
    raw = (tmp_path / COSTS).read_bytes()
    head = json.loads(raw.partition(b"\n")[0]) | {"schema": 2}
    head.pop("crc")
    (tmp_path / COSTS).write_bytes(journal.line(head) + raw.partition(b"\n")[2])
    assert _costs(tmp_path, "run") == {}
    assert "another clock" in capsys.readouterr().err
