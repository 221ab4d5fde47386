"""The doctor: silent on good layouts, and one line with the mend for every broken one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbones import versions
from harness import cli, doctor
from harness.data.refshapes.writer import prepare_refshapes
from tests.refer_tree import HEIGHT, SQUARE, WIDTH, ref, write_tree

Damage = Callable[[Path], object]


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "doctor", *map(str, words)])
    return cli.main()


def wrong(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.startswith("wrong")]


@pytest.fixture
def files(tmp_path: Path, golden_glamm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good data folder (RefCOCO alone, in small) and a good checkpoint, to damage."""
    for part in ("checkpoint", "clip"):
        shutil.copytree(golden_glamm_dir / part, tmp_path / part, copy_function=shutil.copyfile)
        (tmp_path / part).chmod(0o755)
    shutil.copyfile(golden_glamm_dir / "sam_dims.json", tmp_path / "checkpoint" / "sam_dims.json")
    refs = [
        ref(1, 1, 11, "val", "it", "that"),
        ref(2, 2, 11, "testA", "this"),
        ref(3, 3, 11, "testB", "those"),
    ]
    write_tree(tmp_path / "data", refs, images=(1, 2, 3))
    small = {"refcoco": {"val": (1, 1, 2), "testA": (1, 1, 1), "testB": (1, 1, 1)}}
    monkeypatch.setattr(doctor, "OFFICIAL", small)
    return tmp_path


def options(files: Path) -> tuple[object, ...]:
    return "--data", files / "data", "--checkpoint", files / "checkpoint", "--clip", files / "clip"


def test_good_layouts(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *options(files)) == 0
    told = capsys.readouterr().out
    assert wrong(told) == []
    assert "refcoco:val: 1 images, 1 refs, 2 expressions as published, fingerprint" in told
    assert f"checkpoint '{files / 'checkpoint'}'" in told
    assert "nothing wrong" in told


DATA, IMAGES = "data/Refer_Segm/refcoco/", "data/Refer_Segm/coco_2014/train2014/"


def remove(path: str) -> Damage:
    return lambda files: (files / path).unlink()


def write(path: str, text: str) -> Damage:
    return lambda files: (files / path).write_text(text)


def truncated(files: Path) -> None:
    path = files / IMAGES / "2.png"
    path.write_bytes(path.read_bytes()[:60])


def fewer(files: Path) -> None:
    shutil.rmtree(files / "data")
    write_tree(files / "data", [ref(1, 1, 11, "val", "it"), ref(2, 2, 11, "testA", "this")])


def polygon(files: Path) -> None:
    path = files / DATA / "instances.json"
    path.write_text(path.read_text().replace(json.dumps(SQUARE), "[1.0, 2.0, 3.0]"))


def other_size(files: Path) -> None:
    path = files / DATA / "instances.json"
    path.write_text(path.read_text().replace(f'"width": {WIDTH}', f'"width": {WIDTH + 1}'))


def renamed(files: Path) -> None:
    (files / DATA).rename(files / "data" / "Refer_Segm" / "refcco")


def tensors(change: Callable[[dict[str, torch.Tensor]], object], part: str = "checkpoint") -> Damage:
    def damage(files: Path) -> None:
        path = files / part / "model.safetensors"
        held = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(held)
        save_file(held, path)

    return damage


BROKEN: dict[str, tuple[Damage, list[str]]] = {
    "no refs": (remove(DATA + "refs(unc).p"), ["refs(unc).p' is missing", "expected"]),
    "no instances": (remove(DATA + "instances.json"), ["instances.json' is missing", "expected"]),
    "refs that run code": (
        write(DATA + "refs(unc).p", "cos\nsystem\n(S'true'\ntR."),
        ["os.system", "download it again"],
    ),
    "no image": (remove(IMAGES + "1.png"), ["1 of 1 images of refcoco:val are missing", "expected"]),
    "half an image": (truncated, ["refcoco:testA: 1 of 1 images", "2.png", "copy it anew"]),
    "another release": (other_size, [f"{WIDTH}x{HEIGHT} px", "same release"]),
    "a damaged polygon": (polygon, ["annotation 11 is damaged", "mend instances.json, or download it again"]),
    "fewer expressions": (
        fewer,
        ["refcoco:val has 1 images, 1 refs, 1 expressions", "2 expressions", "take the refs file"],
    ),
    "a split is gone": (fewer, ["lacks the published splits testB", "take the refs file"]),
    "a misspelt folder": (renamed, ["refcoco is not in", "Did you mean 'refcco'?"]),
    "no Refer_Segm": (
        lambda files: (files / "data/Refer_Segm").rename(files / "data/Refer"),
        ["holds no folder Refer_Segm"],
    ),
    "a tensor is gone": (
        tensors(lambda held: held.pop("model.norm.weight")),
        ["missing: model.norm.weight", "copy"],
    ),
    "a tensor too many": (
        tensors(lambda held: held.update({"model.extra": torch.zeros(1)})),
        ["unexpected: model.extra", "one release"],
    ),
    "another size": (
        tensors(lambda held: held.update({"model.norm.weight": torch.zeros(3)})),
        ["wrong shape: model.norm.weight [3]"],
    ),
    "no config": (remove("checkpoint/config.json"), ["no config.json", "GLaMM-RefSeg"]),
    "no tokenizer": (remove("checkpoint/tokenizer.model"), ["no tokenizer.model", "copy it"]),
    "no weights": (remove("checkpoint/model.safetensors"), ["no weights", "expected"]),
    "half the weights": (write("checkpoint/model.safetensors", "half"), ["is damaged", "copy it again"]),
    "a shard is gone": (
        write(
            "checkpoint/model.safetensors.index.json",
            '{"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}',
        ),
        ["lacks second.safetensors of the 2 files", "copy them there"],
    ),
    "CLIP without words": (remove("clip/merges.txt"), ["lacks merges.txt", "copy"]),
    "CLIP of another size": (
        tensors(lambda held: held.update({"visual_projection.weight": torch.zeros(3, 3)}), "clip"),
        ["wrong shape: visual_projection.weight", "one release"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_layouts_get_one_line_with_the_mend(
    case: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, told = BROKEN[case]
    damage(files)
    assert command(monkeypatch, *options(files)) == 1
    output = capsys.readouterr()
    assert all(line.startswith("reading ") for line in output.err.splitlines())  # how far it is
    assert any(all(word in line for word in told) for line in wrong(output.out)), output.out


def test_every_fault_is_found_in_one_go(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("half an image", "no tokenizer", "CLIP without words"):
        BROKEN[case][0](files)
    assert command(monkeypatch, *options(files)) == 1
    told = capsys.readouterr().out
    assert len(wrong(told)) == 3
    assert "doctor: 3 wrong" in told


def test_a_folder_that_is_not_there(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command(
            monkeypatch, "--data", files / "no", "--checkpoint", files / "nor", "--clip", files / "neither"
        )
        == 1
    )
    assert len(wrong(capsys.readouterr().out)) == 3


def test_misuse_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--dta", "x") == 2
    assert "--help" in capsys.readouterr().err


def test_generated_data_are_compared_with_what_was_written(tmp_path: Path) -> None:
    root = prepare_refshapes(tmp_path, images=1)
    assert [finding.level for finding in doctor._data(root)] == ["ok"] * 8
    image = sorted((root / "Refer_Segm" / "coco_2014" / "train2014").iterdir())[0]
    raw = bytearray(image.read_bytes())
    raw[2000] ^= 1  # one grey level of one pixel; the checksum is not looked at by every reader
    image.write_bytes(raw)
    levels = [finding.level for finding in doctor._data(root)]
    assert levels.count("wrong") == 3  # val of the three families shares the image


def test_the_published_counts_pass_and_others_do_not(tmp_path: Path) -> None:
    """RefCOCO with as many images, refs and expressions as published; all images are one file."""
    refs, number, image = [], 0, 0
    for split, (images, many, expressions) in doctor.OFFICIAL["refcoco"].items():
        for k in range(many):
            texts = ["it"] * (expressions // many + (k < expressions % many))
            number += 1
            refs.append(ref(number, image + k % images + 1, 11, split, *texts))
        image += images
    root = write_tree(tmp_path, refs, images=(1,))
    folder = root / "Refer_Segm" / "coco_2014" / "train2014"
    for k in range(2, image + 1):
        os.link(folder / "1.png", folder / f"{k}.png")
    instances = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in range(1, image + 1)
        ],
        "annotations": [{"id": 11, "segmentation": [SQUARE]}],
    }
    (root / "Refer_Segm" / "refcoco" / "instances.json").write_text(json.dumps(instances))
    found = list(doctor._dataset(root, "refcoco"))
    assert [finding.level for finding in found] == ["ok"] * 3
    assert "1500 images, 3811 refs, 10834 expressions as published" in found[0].what


def test_published_counts_add_up_to_the_published_totals() -> None:
    train = {"refcoco": (42404, 120624), "refcoco+": (42278, 120191), "refcocog": (42226, 80512)}
    totals = {"refcoco": (50000, 142210), "refcoco+": (49856, 141564), "refcocog": (49822, 95010)}
    for dataset, held in doctor.OFFICIAL.items():
        for k in (1, 2):
            assert (
                sum(counts[k] for counts in held.values()) + train[dataset][k - 1] == totals[dataset][k - 1]
            )


def test_old_and_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "pandas":
            raise versions.PackageNotFoundError
        return "1.0" if name == "torch" else "99"

    monkeypatch.setattr(versions, "version", version)
    told = {
        level: [one.what for one in doctor._packages() if one.level == level] for level in ("wrong", "note")
    }
    assert any(
        "torch 1.0 is outside the range that was tested (" in line and "pip install 'torch" in line
        for line in told["note"]
    )
    assert [line.split(";")[0] for line in told["wrong"]] == ["package pandas is not installed"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    (finding,) = doctor._cache()
    assert finding.level == "wrong"
    assert "GROUNDPRUNE_CACHE" in finding.what
