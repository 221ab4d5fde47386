"""Trains videoglamm-mini: `python -m backbones.videoglamm.mini_training.train --work DIR`.

Stages, each resumable and logged to `DIR/<stage>.csv`:
    clips     paint RefClips' train split
    ways      teacher and mask decoder: which object takes this way?
    watch     video encoder with dense helper heads, then frozen
    talk      adapters, language model and [SEG] head: which way does the referent take?
    export    weights in the official layout, half precision
CLIP, the mask decoder's image encoder and the first weights of the language side are glamm-mini's. This is a
tool, not a part of the backbone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.glamm.checkpoint import load_checkpoint
from backbones.mini.training.config import SAM_DIMS
from backbones.mini.training.loop import run_stage
from backbones.parts import llama
from backbones.parts.tokenizer import LlamaTokenizer, Phi3Tokenizer
from backbones.videoglamm.checkpoint import save_checkpoint
from backbones.videoglamm.mini_training import data, model, talk, teach, text, watch

STAGES = ("clips", "ways", "watch", "talk", "export")
STEPS = {"ways": 1000, "watch": 1200, "talk": 2000}
RATES = {"ways": 1.5e-3, "watch": 1.5e-3, "talk": 1.5e-3}
CLIPS = 3000
WAY_CLIPS = 1500  # of these, clips of the stage `ways`
SEEING = Path(__file__).parents[2] / "mini" / "weights"


class Work:
    """The parts of a training and the folder where it goes on."""

    def __init__(self, folder: Path, clips: int, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clips = data.build_clips(folder / "clips", clips)
        self.tokenizer = folder / "tokenizer"
        vocab = text.build_tokenizer(self.tokenizer, self.clips)
        self.words = Phi3Tokenizer(self.tokenizer)
        seeing = load_checkpoint(SEEING / "checkpoint", str(SEEING / "clip"))
        torch.manual_seed(seed)
        self.model = model.build(seeing, vocab)
        watch.initialise(self.model.video_tower)
        model.warm_start(self.model, seeing, self.words, LlamaTokenizer(SEEING / "checkpoint"))
        self.ways = teach.WaySegmentation(self.model.grounding_encoder, self.clips.first(WAY_CLIPS))
        self.watching = watch.Watching(self.model.video_tower, self.clips)

    def restore(self, stage: str, module: nn.Module) -> None:
        """Load what a stage has learned, if it has begun."""
        path = self.folder / f"{stage}.pt"
        if path.exists():
            module.load_state_dict(torch.load(path, weights_only=True)["modules"])


def train(
    folder: Path,
    stages: Sequence[str],
    clips: int,
    steps: dict[str, int],
    rates: dict[str, float],
    seed: int,
    out: Path | None = None,
) -> None:
    """Run the chosen stages in order; earlier ones are read from `folder`."""
    work = Work(folder, clips, seed)
    whole = work.model
    whole.requires_grad_(False)

    def run(
        stage: str,
        module: nn.Module,
        prepare: Callable[[], None],
        learned: Sequence[nn.Module],
        matrices: Sequence[Any] = (),
    ) -> None:
        if stage in stages:
            prepare()
            for part in learned:
                part.requires_grad_(True)
            run_stage(
                stage,
                module,
                module.loss,  # type: ignore[arg-type]
                folder=folder,
                steps=steps[stage],
                lr=rates[stage],
                seed=seed,
                matrices=matrices,
            )
            module.requires_grad_(False)
        work.restore(stage, module)

    ways, watching = work.ways, work.watching

    def see_frames() -> None:
        ways.embeddings = teach.cache_embeddings(
            whole.grounding_encoder, ways.clips, folder / "embeddings.npy"
        )

    run("ways", ways, see_frames, [ways])
    run("watch", watching, lambda: None, [watching], watch.matrices(whole.video_tower))
    talking = talk.Talking(whole, ways.code, work.clips, work.words, steps=steps["talk"])

    def see_clips() -> None:
        talking.images = talk.cache_features(whole.clip, work.clips, folder / "images.npy")
        talking.videos = watch.cache_states(whole.video_tower, work.clips, folder / "videos.npy")

    learned = [linear.weight for _, linear in llama.matrices(whole.language_model)]
    run("talk", talking, see_clips, [talking], learned)
    if "export" in stages:
        save_checkpoint(
            whole,
            (out or folder / "weights") / "checkpoint",
            SEEING / "clip",
            tokenizer=work.tokenizer,
            frames=data.SAMPLED,
            segmenter=SAM_DIMS,
        )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for clips, caches, checkpoints and logs"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="which to run, comma separated")
    parser.add_argument("--clips", type=int, default=CLIPS, help="size of the train split (1 MB each)")
    parser.add_argument("--steps", default="", help="e.g. 'ways=1000,talk=2000'")
    parser.add_argument("--rates", default="", help="learning rates, e.g. 'talk=3e-3'")
    parser.add_argument("--out", type=Path, help="folder that gets checkpoint/, by default WORK/weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    asked, faster = (
        dict(pair.split("=") for pair in pairs.split(",") if pair) for pairs in (given.steps, given.rates)
    )
    unknown = {*given.stages.split(","), *asked, *faster} - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {sorted(unknown)}; there are {', '.join(STAGES)}")
    steps = STEPS | {stage: int(count) for stage, count in asked.items()}
    rates = RATES | {stage: float(rate) for stage, rate in faster.items()}
    train(given.work, given.stages.split(","), given.clips, steps, rates, given.seed, given.out)


if __name__ == "__main__":
    main()
