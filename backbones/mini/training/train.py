"""Trains glamm-mini: `python -m backbones.mini.training.train --work DIR`, or the same under torchrun for
several processes.

Stages, each resumable and logged to `DIR/<stage>.csv`:
    scenes    paint RefShapes' train split
    sam       SAM alone from point prompts, then frozen
    patches   CLIP's dense helper on crops
    match     CLIP's contrastive loss on whole scenes, helper on, then frozen
    point     language model, projector and [SEG] head: where is the referent?
    export    weights in the official layout, half precision
`--start WEIGHTS` begins from exported weights and their tokenizers instead of random ones: what a stage
without a checkpoint of its own starts from; `--seeing WEIGHTS` takes only CLIP and SAM from there. This is a
tool, not a part of the backbone: the only module of `backbones` that knows a data set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from backbones.glamm.checkpoint import load_checkpoint, save_checkpoint
from backbones.glamm.model import GlammModel
from backbones.glamm.sizes import sam_config
from backbones.mini.training import config, data, ground, see, segment, text
from backbones.mini.training.loop import rank_and_world, run_stage
from backbones.parts import clip as clips
from backbones.parts import llama
from backbones.parts.tokenizer import LlamaTokenizer

STAGES = ("scenes", "sam", "patches", "match", "point", "export")
STEPS = {"sam": 3200, "patches": 2800, "match": 1000, "point": 9000}
# scenes of the language stages; their frozen features are kept on disk
CACHED = 16000
RATES = {"sam": 1.5e-3, "patches": 1.2e-3, "match": 8e-4, "point": 1.5e-3}


def build_model(work: Path, seed: int) -> tuple[GlammModel, Path, Path]:
    """The untrained model, and the folders of its two tokenizers."""
    rank, _ = rank_and_world()
    words, clip = work / "tokenizers" / f"llama-{rank}", work / "tokenizers" / f"clip-{rank}"
    vocab = text.build_llama_tokenizer(words)
    clip_vocab, bos, eos = text.build_clip_tokenizer(clip)
    torch.manual_seed(seed)
    model = GlammModel(
        config.mini_clip_config(clip_vocab, bos, eos),
        config.mini_llm_config(vocab),
        sam_config(config.SAM_DIMS),
    )
    segment.init_sam(model.grounding_encoder)
    see.init_clip(model.clip)
    ground.init_heads(model)
    return model, words, clip


def restore(stage: str, module: nn.Module, work: Path) -> None:
    """Load what a finished stage learned."""
    state = torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")
    module.load_state_dict(state["modules"])


def train(
    work: Path,
    stages: tuple[str, ...],
    scenes: int,
    steps: dict[str, int],
    seed: int,
    device: str,
    cached: int = CACHED,
    start: Path | None = None,
    seeing_alone: bool = False,
) -> None:
    """Run the chosen stages in order; earlier ones are read from `work`."""
    from transformers import CLIPTokenizer

    work.mkdir(parents=True, exist_ok=True)
    split = data.build_scenes(work / "scenes", scenes)
    model, llama_folder, clip_folder = build_model(work, seed)
    if start is not None:
        # the weights know their own tokenizers: another version of the library may build others
        llama_folder, clip_folder = start / "checkpoint", start / "clip"
        known = load_checkpoint(llama_folder, str(clip_folder)).state_dict()
        if seeing_alone:
            known = {name: part for name, part in known.items() if name.startswith(("clip.", "grounding_"))}
        model.load_state_dict(known, strict=not seeing_alone)
    model.to(device)
    sam, clip = model.grounding_encoder, model.clip
    tokenizer = LlamaTokenizer(llama_folder)
    patches = see.PatchReading(clip, split)
    matching = see.SceneMatching(clip, patches.reader, split, CLIPTokenizer.from_pretrained(str(clip_folder)))
    for module in (patches, matching):
        module.to(device)

    def run(stage: str, module: nn.Module, loss, matrices=()) -> None:  # type: ignore[no-untyped-def]
        if stage in stages:
            run_stage(
                stage,
                module,
                loss,
                folder=work,
                steps=steps[stage],
                lr=RATES[stage],
                seed=seed,
                matrices=matrices,
            )
        if stage in stages or (work / f"{stage}.pt").exists():
            restore(stage, module, work)

    run("sam", sam, segment.PointSegmentation(sam, split))
    for part in clips.text_side(clip):
        part.requires_grad_(False)
    run("patches", patches, patches.loss)
    clip.requires_grad_(True)
    run("match", matching, matching.loss)
    sam.requires_grad_(False)
    clip.requires_grad_(False)
    talked = split.first(cached)
    pointing = ground.Pointing(model, talked, None, tokenizer, steps=steps["point"]).to(device)
    if "point" in stages:
        pointing.features = see.cache_features(clip, talked, work / "features.npy")
    run(
        "point",
        pointing,
        pointing.loss,
        [linear.weight for _, linear in llama.matrices(model.language_model)],
    )
    if "export" in stages and rank_and_world()[0] == 0:
        export(model, work / "weights", llama_folder, clip_folder)


def export(model: GlammModel, out: Path, llama_folder: Path, clip_folder: Path) -> None:
    """Write `out/checkpoint` and `out/clip` in the official layout."""
    save_checkpoint(
        model.cpu(),
        out / "checkpoint",
        out / "clip",
        tokenizer=llama_folder,
        clip_tokenizer=clip_folder,
        sam_dims=config.SAM_DIMS,
        dtype=torch.float16,
    )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for scenes, caches, checkpoints and logs"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="which to run, comma separated")
    parser.add_argument("--scenes", type=int, default=30000, help="size of the train split")
    parser.add_argument(
        "--cached", type=int, default=CACHED, help="of these, scenes of the language stages (147 kB each)"
    )
    parser.add_argument("--steps", default="", help="e.g. 'sam=2000,point=9000'")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--start", type=Path, help="folder with checkpoint/ and clip/ to begin from")
    begin.add_argument("--seeing", type=Path, help="the same for CLIP and SAM, under a new language side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of each process; one is fastest on CPU"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    asked = dict(pair.split("=") for pair in given.steps.split(",") if pair)
    unknown = {*given.stages.split(","), *asked} - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {sorted(unknown)}; there are {', '.join(STAGES)}")
    steps = STEPS | {stage: int(count) for stage, count in asked.items()}
    train(
        given.work,
        tuple(given.stages.split(",")),
        given.scenes,
        steps,
        given.seed,
        given.device,
        given.cached,
        given.start or given.seeing,
        given.seeing is not None,
    )


if __name__ == "__main__":
    main()
