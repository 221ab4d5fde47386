"""`try`: one image, or of a video backbone one clip, and one expression under many pruners."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands.options import (
    Checkpoint,
    Clip,
    Debug,
    Device,
    Dtype,
    Expression,
    Image,
    OneBackbone,
    OneBudget,
    PictureOut,
    Plugins,
    Pruners,
    SamDims,
    import_plugins,
    one_backbone,
)

if TYPE_CHECKING:
    from backbones.clip_answer import ClipAnswer
    from backbones.image_answer import Answer
    from backbones.registry import Settings
    from harness.plan import Plan

STEM = "try"  # of the picture, without --out
NAMED = 6  # other expressions of the built-in scene


def try_image(
    image: Image = None,
    expression: Expression = None,
    pruners: Pruners = "all",
    budget: OneBudget = "64",
    out: PictureOut = None,
    backbone: OneBackbone = "glamm-mini",
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    debug: Debug = False,
) -> None:
    """Draw what every pruner keeps of one image or clip, and the mask that follows."""
    import backbones
    from backbones.device import told
    from backbones.parts.clip_files import is_clip
    from harness.engine.budgets import tokens_of
    from harness.engine.ranks import Place
    from harness.engine.single_image import ask_pruners as ask
    from harness.engine.single_image import subject
    from harness.plan import Plan, with_settings
    from pruners.base import UserError

    import_plugins(plugin)
    texts = with_settings([one_backbone(backbone)], checkpoint=checkpoint, clip=clip, sam_dims=sam_dims)
    plan = Plan(pruners=pruners, budgets=budget, backbones=texts, device=device, dtype=dtype)  # type: ignore[arg-type]
    if len(plan.budgets) != 1:
        raise UserError(f"--budget takes one budget here, not {budget!r}; write e.g. --budget 64.")
    chosen = plan.chosen()
    family = backbones.one(texts[0])
    if family.medium == "video":
        _try_clip(image, expression, plan, family, out)
        return
    if image is not None and expression is not None and is_clip(image):
        raise UserError(
            f"{texts[0]} looks at images, and {image!r} is a clip; give an image file, or a video backbone, "
            f"e.g. --backbone videoglamm-mini."
        )
    asked = subject(image, expression)

    from reports.files import picture_file
    from reports.overlay import draw_overlay

    target = picture_file(out, STEM)
    unlike = family.unlike(asked.image)
    _tell_asked(asked.expression, asked.others, unlike)
    model = plan.load(Place())
    size = tokens_of(plan.budgets[0], model.grid[0] * model.grid[1])
    found = ask(model, asked.image, asked.expression, chosen, size, asked.truth, unlike)
    draw_overlay(found, model.grid, size, target)
    print(told(device, model.device), file=sys.stderr)
    _tell_left_out(found.lacking, found.left_out)
    for one in found.answers:
        score = "" if one.iou is None else f"  IoU {100 * one.iou:5.1f} %"
        _tell_answer(one.name, one.answer, score)
    print(f"picture: {target}")


def _try_clip(
    named: str | None, expression: str | None, plan: Plan, family: Settings, out: Path | None
) -> None:
    """A strip of frames and a film of one clip under every pruner."""
    from backbones.device import told
    from harness.engine.budgets import tokens_of
    from harness.engine.ranks import Place
    from harness.engine.single_clip import ask_of_clip, clip_subject, unlike_clip

    asked = clip_subject(named, expression)

    from reports.clip_overlay import draw_strip, write_film
    from reports.files import film_files

    picture, film = film_files(out, STEM)
    unlike = unlike_clip(family, asked.clip)
    _tell_asked(asked.expression, asked.others, unlike)
    model = plan.load(Place())
    size = tokens_of(plan.budgets[0], model.grid[0] * model.grid[1])
    found = ask_of_clip(model, asked.clip, asked.expression, plan.chosen(), size, asked.truth, unlike)
    draw_strip(found, model.grid, size, picture)
    frames = write_film(found, model.grid, film)
    print(told(plan.device, model.device), file=sys.stderr)
    _tell_left_out(found.lacking, found.left_out)
    for one in found.answers:
        scores = (
            ""
            if one.j is None or one.f is None
            else f"  J {100 * one.j.mean():5.1f} %  F {100 * one.f.mean():5.1f} %"
        )
        _tell_answer(one.name, one.answer, scores)
    seen = ", ".join(str(number) for number in dict.fromkeys(found.answers[0].answer.shown))
    clip = asked.clip
    print(f"clip: {len(clip)} frames of {clip.width}x{clip.height} px, of which the model sees {seen}")
    print(f"picture: {picture}")
    print(f"film: {film} ({frames} frames)")


def _tell_asked(expression: str, others: tuple[str, ...], unlike: str | None) -> None:
    """What is asked, before anything takes time; a model that was not trained for it on stderr."""
    if unlike:
        print(unlike, file=sys.stderr, flush=True)
    print(f"asked: {expression}", flush=True)
    if others:
        more = "" if len(others) <= NAMED else f" and {len(others) - NAMED} more"
        named = ", ".join(f'"{one}"' for one in others[:NAMED])
        print(f"others that are known of it: {named}{more}", flush=True)


def _tell_answer(name: str, answer: Answer | ClipAnswer, scores: str) -> None:
    other = answer.tokens_final - int(answer.kept.sum())
    placeless = f"  ({other} without a place)" if other > 0 else ""
    print(f"{name:<24} {answer.tokens_final:>4} tokens  {answer.seconds:6.3f} s{scores}{placeless}")


def _tell_left_out(lacking: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    for reason in lacking:
        print(f"left out: {reason}")
    if left_out:
        print(f"left out, because only the truth tells them what to keep: {', '.join(left_out)}")
