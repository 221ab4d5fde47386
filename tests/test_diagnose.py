"""The diagnosis: statistics on cases with known answers, both verdicts, and a whole one of the embedded
backbone."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import backbones
from backbones.glamm.backbone import GlammBackbone
from backbones.mini import GlammMini
from harness import cli
from harness.diagnosis import similarities as diagnose
from harness.diagnosis import summary as diagnosis
from harness.store import records
from harness.store.journal import write_atomically
from harness.store.run_folder import LOOSE
from pruners import UserError
from reports.diagnosis import verdict, write_diagnosis
from tests.fake_backbone import FakeBackbone

RNG = np.random.default_rng(0)


# -- statistics


def test_auroc_counts_pairs() -> None:
    scores, positive = RNG.integers(0, 5, 40).astype(float), RNG.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert diagnosis.auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(diagnosis.auroc(scores, np.zeros(40, dtype=bool)))


def test_ranks_start_with_the_least_similar() -> None:
    scores = np.arange(100.0)
    low = diagnosis.rank_histogram(scores, scores < 10)
    assert low.tolist() == [1.0] + [0.0] * 9
    assert diagnosis.rank_histogram(scores, np.ones(100, dtype=bool)) == pytest.approx([0.1] * 10)


def test_jaccard() -> None:
    a = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    b = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert diagnosis.jaccard(a, b).tolist() == [1 / 3, 1.0]


# -- verdicts


def fake(auroc: float, spread: float = 0.02) -> diagnosis.Diagnosis:
    """A diagnosis whose referents rank as asked."""
    count = 30
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {"image": [str(k) for k in range(count)], "expression": range(count)}
    for name in diagnosis.SIMILARITIES:
        columns[f"auroc {name}"] = auroc + spread * rng.normal(size=count)
        columns |= {f"rank {name} {k}": rng.random(count) for k in range(diagnosis.BINS)}
    columns |= {name: rng.random(count) for name in ("pearson", "spearman", "start 0", "start 1")} | {
        "tokens": 12
    }
    return diagnosis.Diagnosis("glamm-mini", "f" * 16, ("refshapes:val",), 0, pd.DataFrame(columns), 0, 2)


@pytest.mark.parametrize(
    ("auroc", "spread", "holds", "told"),
    [
        (0.3, 0.02, True, "reversal holds on glamm-mini: the referent's visual tokens look less like"),
        (
            0.7,
            0.02,
            False,
            "reversal does not hold on glamm-mini: the referent's visual tokens look more like",
        ),
        (0.5, 0.2, None, "undecided"),
    ],
)
def test_the_verdict_is_one_sentence_whichever_way(
    auroc: float, spread: float, holds: bool | None, told: str, tmp_path: Path
) -> None:
    found = fake(auroc, spread)
    assert found.reversal is holds
    sentence = verdict(found)
    assert told in sentence
    assert sentence.count(". ") == 0
    assert f"{found.mean(f'auroc {diagnosis.MAIN}').value:.3f}" in sentence
    assert sentence in write_diagnosis(found, tmp_path).read_text()


def test_too_few_images_leave_it_undecided() -> None:
    found = fake(0.3)
    few = dataclasses.replace(found, rows=found.rows.head(2))
    assert few.reversal is None
    assert "2 images do not tell" in verdict(few)
    assert "too few for an interval" in verdict(few)


# -- what pruners keep


def rows() -> pd.DataFrame:
    """Two pruners on 2 x 2 patches: `half` keeps the left column and `corner` one patch of it, IoU follows
    coverage."""
    found = []
    for image in range(12):
        for pruner, indices in (("half", [0, 2]), ("corner", [0]), ("none", [0, 1, 2, 3])):
            coverage = (image % 4) / 3 if pruner != "none" else 1.0
            found.append(
                {
                    "pruner": pruner,
                    "budget": 4 if pruner == "none" else 2,
                    "seed": 0,
                    "sample": f"refcoco:val:{image}",
                    "cluster": f"train2014/{image}.jpg",
                    "expression": image,
                    "coverage": coverage,
                    "iou": 0.5 * coverage + 0.1,
                    "kept": records.pack_tokens(np.array(indices), 4),
                }
            )
    return pd.DataFrame(found)


def test_kept_tokens_are_summarised() -> None:
    found = diagnosis.summarise(rows(), (2, 2), "run")
    table = found.table.set_index("pruner")
    assert table.loc["half", "coverage"] == pytest.approx(0.5)
    assert table.loc["half", "coverage low"] < 0.5 < table.loc["half", "coverage high"]
    assert table.loc["half", "correlation"] == pytest.approx(1)
    assert np.isnan(table.loc["none", "correlation"])
    assert found.overlap[2].loc["half", "corner"] == 0.5
    assert found.places["half", 2].tolist() == [[1, 0], [1, 0]]
    assert ("none", 4) not in found.places


def test_data_sets_that_share_an_image_are_one_cluster() -> None:
    frame = rows()
    twice = pd.concat([frame, frame.assign(sample=frame["sample"].str.replace("refcoco:", "refcoco+:"))])
    one, two = (diagnosis.summarise(part, (2, 2), "run").table.set_index("pruner") for part in (frame, twice))
    assert one.loc["half", "coverage low"] == two.loc["half", "coverage low"]


# -- on a backbone


@pytest.fixture(scope="module")
def mini() -> GlammBackbone:
    model = backbones.load("glamm-mini")
    assert isinstance(model, GlammBackbone)
    return model


def test_attention_of_the_end_token_is_the_text_towers(mini: GlammBackbone) -> None:
    """Against transformers' own eager attention maps, in a batch with padding."""
    from transformers import CLIPTextModel

    texts = ["the red star", "the small blue ring that is left of the big green square"]
    shares, lengths = mini.probes.end_attention(texts)
    own = mini.model.clip.text_model
    eager = CLIPTextModel._from_config(own.config, attn_implementation="eager")
    eager.load_state_dict(own.state_dict())
    for k, text in enumerate(texts):
        words = mini.clip_tokenizer([text], return_tensors="pt")
        maps = eager.eval().requires_grad_(False)(**words, output_attentions=True).attentions
        assert lengths[k] == words["input_ids"].shape[1]
        assert shares[k].tolist() == pytest.approx(
            [float(layer[0, :, -1, 0].mean()) for layer in maps], abs=1e-5
        )


def test_the_class_token_goes_the_way_of_the_patches(mini: GlammBackbone) -> None:
    encoding = mini.encode([np.zeros((32, 32, 3), dtype=np.uint8)])[0]
    states = (*encoding.hidden_states[:-1], encoding.hidden_states[-1][:1].expand(577, -1))
    swapped = dataclasses.replace(encoding, hidden_states=states, signals={})
    patches = mini.views(swapped, (), "")[0].projected_patches
    assert torch.allclose(patches[5], mini.probes.projected_class(encoding), atol=1e-5)


def test_a_whole_diagnosis(
    tmp_path: Path, mini: GlammBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GlammMini, "load", lambda *_: mini)
    run, out = tmp_path / "run", tmp_path / "diagnosis"

    def command(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
        return cli.main()

    sets = ("--datasets", "refshapes:val", "--limit", 2)
    swept = ("--pruners", "none,uniform,litelvlm", "--budgets", 64, "--protocol", "each", "--costs", "off")
    assert command(*sets, *swept, "--out", run) == 0
    capsys.readouterr()
    assert command("diagnose", *sets, "--run", run, "--out", out) == 0
    told = capsys.readouterr().out
    page = (out / "diagnosis.md").read_text()
    assert told.splitlines()[0] in page
    assert "litelvlm" in page
    for name in ("ranks", "sink", "coverage", "overlap", "places"):
        assert f"({name}.svg)" in page
        assert (out / f"{name}.svg").stat().st_size > 2000
        assert (out / f"{name}.png").stat().st_size > 2000
    table = pd.read_csv(out / "diagnosis.csv")
    expressions = records.load_records(run)[["sample", "expression"]].drop_duplicates()
    assert len(table) == len(expressions)
    assert table["image"].nunique() == 2
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command("diagnose", *sets, "--run", run, "--out", out) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    info = json.loads((run / "run.json").read_text())
    for cell in info["cells"].values():
        cell["setting"]["fingerprint"] = "0" * 16
    write_atomically(run / "run.json", info, LOOSE)
    assert command("diagnose", *sets, "--run", run, "--out", out) == 2
    assert "give --run a run of this backbone" in capsys.readouterr().err


def test_a_backbone_without_clip_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        diagnose.measure_similarities(FakeBackbone(), [("refshapes", "val")], 1)
