"""What users get wrong with checkpoint folders, and the official layouts that have to load; on the tiny
official checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

import backbones
from backbones.glamm.release import GLAMM
from backbones.glamm.sizes import llm_config, sam_config, sam_numbers
from backbones.parts import reading
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past
from pruners import Cut, LayerView, Pruner, Selection, UserError, checks, parse

Damage = Callable[[Path], object]


@pytest.fixture
def folder(golden_glamm_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint folder to damage, with the grounding encoder's numbers inside."""
    for part in ("checkpoint", "clip"):
        shutil.copytree(golden_glamm_dir / part, tmp_path / part, copy_function=shutil.copyfile)
        (tmp_path / part).chmod(0o755)
    shutil.copyfile(golden_glamm_dir / "sam_dims.json", tmp_path / "checkpoint" / "sam_dims.json")
    return tmp_path


def load(folder: Path, **settings: Any) -> Any:
    return backbones.load("glamm", checkpoint=folder / "checkpoint", clip=str(folder / "clip"), **settings)


def change(path: str, **values: object) -> Damage:
    """Set entries of a json file; None removes one."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / path).read_text()) | values
        (folder / path).write_text(
            json.dumps({name: value for name, value in found.items() if value is not None})
        )

    return damage


def write(path: str, text: str) -> Damage:
    return lambda folder: (folder / path).write_text(text)


def remove(path: str) -> Damage:
    return lambda folder: (folder / path).unlink()


def replace(path: str, **tensors: torch.Tensor) -> Damage:
    def damage(folder: Path) -> None:
        found = {name: tensor.clone() for name, tensor in load_file(folder / path).items()}
        save_file(
            found | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / path
        )

    return damage


def as_bin(content: Callable[[dict[str, torch.Tensor]], object], **saving: bool) -> Damage:
    """Store the weights as one pytorch_model.bin."""

    def damage(folder: Path) -> None:
        path = folder / "checkpoint" / "model.safetensors"
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        path.unlink()
        torch.save(content(found), path.with_name("pytorch_model.bin"), **saving)

    return damage


def shards(folder: Path) -> list[Path]:
    """Store the weights in two .bin files with their index, as released."""
    path = folder / "checkpoint" / "model.safetensors"
    found = [(name, tensor.clone()) for name, tensor in load_file(path).items()]
    path.unlink()
    half = len(found) // 2
    files, index = [], {}
    for k, part in enumerate((found[:half], found[half:])):
        files.append(path.with_name(f"pytorch_model-0000{k + 1}-of-00002.bin"))
        torch.save(dict(part), files[-1])
        index |= {name: files[-1].name for name, _ in part}
    path.with_name("pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return files


def tower(part: str, **values: object) -> Damage:
    """Set entries of one tower's part of CLIP's config.json."""

    def damage(folder: Path) -> None:
        path = folder / "clip" / "config.json"
        found = json.loads(path.read_text())
        found[part] |= values
        path.write_text(json.dumps(found))

    return damage


def index(name: str) -> Damage:
    return write(
        "checkpoint/model.safetensors.index.json", json.dumps({"weight_map": {"model.norm.weight": name}})
    )


def pipe(path: str) -> Damage:
    """A named pipe in a file's place: a reader would wait for ever."""

    def damage(folder: Path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    return damage


class Asks:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def compressed(folder: Path) -> None:
    """A .bin file whose members unpack to more than they take, as torch never writes them."""
    as_bin(lambda found: {"x": torch.zeros(10**6)})(folder)
    path = folder / "checkpoint" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove("checkpoint/tokenizer.model"), "There is no tokenizer.model"),
        (write("checkpoint/tokenizer.model", "none"), "no sentencepiece model"),
        (remove("checkpoint/added_tokens.json"), "There is no added_tokens.json"),
        (write("checkpoint/added_tokens.json", "[1]"), "holds a list"),
        (change("checkpoint/added_tokens.json", **{"[SEG]": None}), r"no id for \[SEG\]"),
        (change("checkpoint/added_tokens.json", **{"[SEG]": 99999}), "ids up to 99999"),
        (write("checkpoint/config.json", "[]"), "holds a list"),
        (change("checkpoint/config.json", hidden_size=None), "hidden_size is missing"),
        (change("checkpoint/config.json", hidden_size="64"), "hidden_size is '64', not a whole number"),
        (
            change("checkpoint/config.json", num_attention_heads=7, num_key_value_heads=7),
            "No model can be built",
        ),
        (change("checkpoint/config.json", rms_norm_eps=0), "rms_norm_eps is 0"),
        (change("checkpoint/config.json", mm_vision_select_layer=-1), "mm_vision_select_layer is -1"),
        (change("checkpoint/config.json", rope_scaling={"type": "linear", "factor": 2}), "rope_scaling"),
        (change("checkpoint/config.json", rope_parameters={"rope_theta": 5e5}), "rope_parameters"),
        (change("checkpoint/config.json", attention_bias=True), "attention_bias"),
        (change("checkpoint/config.json", head_dim=7), "head_dim"),
        (change("checkpoint/sam_dims.json", depth=None), "depth is missing"),
        (change("checkpoint/sam_dims.json", depth="4", window_size=-1), "depth is '4'.*window_size is -1"),
        (
            change("checkpoint/sam_dims.json", mlp_ratio="4", global_attn_indexes=1),
            "global_attn_indexes is 1.*mlp_ratio is '4'",
        ),
        (as_bin(list), "a list, not named tensors"),
        (as_bin(lambda found: {"state_dict": found}), "state_dict is a dict, not a tensor"),
        (lambda folder: shards(folder)[1].unlink(), "lacks pytorch_model-00002-of-00002.bin of the 2 files"),
        (
            lambda folder: (shards(folder), write("checkpoint/pytorch_model.bin.index.json", "{}")(folder)),
            "no weight_map",
        ),
        (remove("clip/vocab.json"), "lacks vocab.json"),
        (write("clip/vocab.json", "{"), "not readable json"),
        (remove("clip/model.safetensors"), "no weights"),
        (write("clip/config.json", "{}"), "no vision_config and text_config"),
        (replace("clip/model.safetensors", surprise=torch.zeros(2)), "unexpected: surprise"),
        (
            replace("clip/model.safetensors", logit_scale=torch.tensor(float("inf"))),
            "NaN or infinite: logit_scale",
        ),
        (
            replace("clip/model.safetensors", logit_scale=torch.tensor(3)),
            r"no floating-point numbers: logit_scale \(int64\)",
        ),
        (write("checkpoint/config.json", '{"a":' + "[" * 10**5), "nested too deeply"),
        (write("checkpoint/added_tokens.json", "[" * 10**5), "nested too deeply"),
        (write("checkpoint/config.json", '{"hidden_size": ' + "9" * 5000 + "}"), "not readable json"),
        (lambda folder: os.truncate(folder / "clip/vocab.json", 2**40), "it has 1048576 MiB, more than 64"),
        (lambda folder: os.truncate(folder / "checkpoint/tokenizer.model", 2**40), "no sentencepiece model"),
        (
            change("checkpoint/config.json", hidden_size=10**9),
            "hidden_size is 1000000000, not a whole number from 1 to 65536",
        ),
        (change("checkpoint/config.json", num_hidden_layers=10**7), "num_hidden_layers is 10000000"),
        (change("checkpoint/config.json", rope_theta=float("nan")), "rope_theta is nan"),
        (
            change("checkpoint/sam_dims.json", depth=10**8, mlp_ratio=float("inf")),
            "depth is 100000000.*mlp_ratio is inf",
        ),
        (tower("vision_config", num_hidden_layers=10**8), "vision_config's num_hidden_layers is 100000000"),
        (tower("text_config", hidden_size=True), "text_config's hidden_size is True"),
        (change("checkpoint/added_tokens.json", **{"[SEG]": -5}), r"'\[SEG\]' has the id -5"),
        (change("checkpoint/added_tokens.json", **{"[SEG]": 5}), r"'\[SEG\]' and '<0x02>' share the id 5"),
        (
            change("checkpoint/added_tokens.json", **{"<p>": 460, "<q>": 460}),
            "'<p>' and .* share the id|and '<q>' share the id",
        ),
        (change("checkpoint/added_tokens.json", **{"": 466}), "'' has the id 466"),
        (write("clip/vocab.json", "{}"), "do not fit together"),
        (write("clip/merges.txt", "x\n" * 9), "no pair of pieces"),
        (write("clip/merges.txt", "qqq zzz\n"), "'qqq' and 'zzz' merge into no piece"),
        (change("clip/vocab.json", **{"a": 10**6}), "'a' has the id 1000000"),
        (
            change("clip/preprocessor_config.json", size=24, crop_size={"height": 24, "width": 24}),
            "size is 24 where .* is 48",
        ),
        (change("clip/preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), "image_mean is"),
        (
            change("checkpoint/config.json", mm_vision_tower="openai/clip-vit-large-patch14"),
            "16 x 16 visual .* has 24 x 24",
        ),
        (
            change("checkpoint/config.json", vision_tower="/models/clip-vit-base-patch32/"),
            "7 x 7 visual tokens",
        ),
        (write("checkpoint/adapter_config.json", "{}"), r"holds an adapter \(adapter_config\.json\)"),
        (
            replace("checkpoint/model.safetensors", x__lora_A__weight=torch.zeros(2)),
            r"unexpected: x\.lora_A\.weight\); merge it",
        ),
        (
            replace("checkpoint/model.safetensors", base_model__model__x=torch.zeros(2)),
            r"base_model\.model\.x\); merge it",
        ),
        (index("../outside.safetensors"), "names '../outside.safetensors', which is no file of its folder"),
        (index("/etc/passwd"), "names '/etc/passwd'"),
        (pipe("checkpoint/model.safetensors"), "model.safetensors in .* is no regular file"),
        (
            as_bin(lambda found: {"x": Asks(bytearray, 2**40)}),
            r"it asks for (__builtin__|builtins)\.bytearray",
        ),
        (
            as_bin(lambda found: {"x": Asks(bytearray, 2**40)}, _use_new_zipfile_serialization=False),
            "it asks for .*bytearray",
        ),
        (compressed, "it is compressed"),
        (write("checkpoint/model.safetensors", "\xff" * 100), "is damaged"),
    ],
)
def test_one_sentence(folder: Path, damage: Damage, says: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_missing_clip_tensors_have_clip_names(folder: Path) -> None:
    path = folder / "clip" / "model.safetensors"
    save_file(
        {name: tensor for name, tensor in load_file(path).items() if name != "visual_projection.weight"}, path
    )
    with pytest.raises(UserError, match=r"missing: visual_projection\.weight\)"):
        load(folder)


def test_a_tensor_stored_twice(folder: Path) -> None:
    path = folder / "checkpoint" / "model.safetensors"
    save_file({"model.norm.weight": load_file(path)["model.norm.weight"]}, path.with_name("rest.safetensors"))
    with pytest.raises(UserError, match=r"stored twice: model\.norm\.weight"):
        load(folder)


def test_weights_too_large_for_half_precision(folder: Path) -> None:
    width = json.loads((folder / "checkpoint" / "config.json").read_text())["hidden_size"]
    replace("checkpoint/model.safetensors", model__norm__weight=torch.full((width,), 1e6))(folder)
    load(folder)
    with pytest.raises(UserError, match=r"too large for float16: model\.norm\.weight"):
        load(folder, dtype="float16")


@pytest.mark.parametrize("store", [shards, as_bin(dict), as_bin(dict, _use_new_zipfile_serialization=False)])
def test_official_layouts(folder: Path, store: Damage) -> None:
    """Shards with their index, one file, and a file in the format of before torch 1.6."""
    first = load(folder).model.state_dict()
    store(folder)
    again = load(folder).model.state_dict()
    assert all(tensor.equal(again[name]) for name, tensor in first.items())


def test_files_beside_an_index_are_left_alone(folder: Path) -> None:
    shards(folder)
    torch.save({"optimizer": 1}, folder / "checkpoint" / "pytorch_model-other.bin")
    load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        replace("checkpoint/model.safetensors", model__norm__weight=torch.ones(64)),
        change("checkpoint/config.json", rms_norm_eps=1e-6),
        change("checkpoint/added_tokens.json", **{"<point>": 470}),
        change("checkpoint/sam_dims.json", window_size=7),
        change("clip/preprocessor_config.json", do_rescale=None),
        change("clip/config.json", projection_dim=25),
        lambda folder: (folder / "clip/merges.txt").open("a").write("\n"),
    ],
)
def test_the_fingerprint_knows_what_the_model_depends_on(folder: Path, damage: Damage) -> None:
    def mark() -> str:
        return reading.weights_fingerprint(
            folder / "checkpoint", folder / "clip", sam_numbers(folder / "checkpoint")
        )

    before = mark()
    damage(folder)
    assert mark() != before


def test_the_fingerprint_knows_nothing_else(folder: Path) -> None:
    before = load(folder).fingerprint
    shutil.copyfile(folder / "checkpoint/sam_dims.json", folder / "numbers.json")
    for name in ("trainer_state.json", "README.md", "generation_config.json", "tokenizer_config.json"):
        (folder / "checkpoint" / name).write_text('{"step": 7}')
        (folder / "clip" / name).write_text('{"step": 7}')
    path = folder / "checkpoint/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7).replace("\n", "\r\n"))
    assert load(folder).fingerprint == before
    assert load(folder, sam_dims=folder / "numbers.json").fingerprint == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "meta"}, "there are auto, cpu, cuda"),
        ({"device": "xla"}, "there are auto, cpu, cuda"),
        ({"device": "cuda:99"}, "needs a CUDA GPU|this machine has"),
    ],
)
def test_devices_that_are_not_there(folder: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(folder, **settings)
    assert load(folder, device="cpu:0").device == "cpu"


def test_flash_attention_needs_half_precision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(backbones.registry, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="does not compute in float32; add --dtype bfloat16"):
        load(folder, device="cuda", attn="flash_attention_2")
    with pytest.raises(UserError, match="this machine has cuda:0 to cuda:1"):
        load(folder, device="cuda:2")


def test_clip_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache answers without a network; without either, one sentence and no download that retries."""
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **how: Any) -> str:
        asked.append(how | {"name": name})
        if name != GLAMM.clip:
            raise FileNotFoundError(name)
        return str(folder / "clip")

    def unreachable(*_given: object, **_how: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    found = backbones.load("glamm", checkpoint=folder / "checkpoint")
    assert found.grid == load(folder).grid
    assert [call["revision"] for call in asked] == [GLAMM.revision] and asked[0]["local_files_only"]
    with pytest.raises(UserError, match=r"neither a directory nor reachable.*give --clip DIR"):
        backbones.load("glamm", checkpoint=folder / "checkpoint", clip="someone/clip")
    assert len(asked) == 2


def test_settings_that_may_be_given(folder: Path) -> None:
    settings = json.loads((folder / "checkpoint" / "config.json").read_text())
    assert llm_config(settings, GLAMM).rope_parameters["rope_theta"] == 10000
    other = settings | {"rope_theta": 5e5, "hidden_act": None}
    assert llm_config(other, GLAMM).rope_parameters["rope_theta"] == 5e5
    with pytest.raises(UserError, match="img_size is missing"):
        sam_config({})


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_layers_agree_with_transformers_in_one_piece_and_in_two(attn: str) -> None:
    """Several tokens behind a cache look at all of it, and at themselves causally."""
    torch.manual_seed(0)
    numbers = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    llm = LlamaModel._from_config(
        LlamaConfig(vocab_size=8, num_hidden_layers=3, **numbers), attn_implementation=attn
    )
    llm = llm.double().eval()
    given = torch.randn(2, 12, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = llm(inputs_embeds=given).last_hidden_state
        torch.testing.assert_close(run_layers(llm, given).hidden, expected)
        past = Past()
        first = run_layers(llm, given[:, :7], past=past).hidden
        second = run_layers(llm, given[:, 7:], past=Past(past), first_position=7).hidden
        torch.testing.assert_close(torch.cat([first, second], 1), expected)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_fastv_keeps_position_ids_and_reads_the_real_row(attn: str) -> None:
    """Kept tokens keep their places, the row is the one that eager transformers reports, caches differ by
    layer."""
    torch.manual_seed(0)
    numbers = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=8, num_hidden_layers=4, **numbers)
    llm = LlamaModel._from_config(config, attn_implementation=attn).double().eval()
    eager = LlamaModel._from_config(config, attn_implementation="eager").double().eval()
    eager.load_state_dict(llm.state_dict())
    given = torch.randn(2, 30, 64, dtype=torch.float64)
    pruner = parse("fastv(layer=2)")[0]
    read: list[Tensor] = []

    def watched(by: Pruner, tokens: LayerView, count: int) -> Selection:
        read.append(tokens.attention("last")[:, 0, tokens.visual])
        return checks.cut(by, tokens, count)

    cuts, past = [Cutting(pruner, (Cut(2, 6),), choose=watched)] * 2, Past()
    with torch.inference_mode():
        run = run_layers(llm, given, visual_start=5, visual_count=16, cuttings=cuts, past=past)
        rows = eager(inputs_embeds=given, output_attentions=True).attentions[1][:, :, -1, 5:21]
    torch.testing.assert_close(torch.stack(read), rows)
    for kept, places, row in zip(run.patches, run.positions, rows, strict=True):
        assert kept.tolist() == row.mean(0).topk(6).indices.sort().values.tolist()
        assert places.tolist() == [*range(5), *(kept + 5).tolist(), *range(21, 30)]
    assert run.lengths == (30, 30, 20, 20)
    assert [past.layers[layer][0].shape[2] for layer in range(4)] == [30, 30, 20, 20]
