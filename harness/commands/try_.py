"""`try`: one image and one expression under many pruners."""

from __future__ import annotations

from pathlib import Path

from harness.commands.options import (
    Backbones,
    Budgets,
    Checkpoint,
    Clip,
    Debug,
    Device,
    Dtype,
    Expression,
    Image,
    Out,
    Plugins,
    Pruners,
    SamDims,
    import_plugins,
    one_backbone,
)

PICTURE = Path("try.png")


def try_image(
    image: Image = None,
    expression: Expression = None,
    pruners: Pruners = "all",
    budget: Budgets = "64",
    out: Out = None,
    backbone: Backbones = "glamm-mini",
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    debug: Debug = False,
) -> None:
    """Draw what every pruner keeps of one image, and the mask that follows."""
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
    pixels, text, truth = subject(image, expression)

    from reports.overlay import draw_overlay

    model, target = plan.load(Place()), out or PICTURE
    size = tokens_of(plan.budgets[0], model.grid[0] * model.grid[1])
    found = ask(model, pixels, text, chosen, size, truth)
    draw_overlay(found, model.grid, size, target)
    for reason in found.lacking:
        print(f"left out: {reason}")
    if found.left_out:
        print(f"left out, because only the truth tells them what to keep: {', '.join(found.left_out)}")
    for one in found.answers:
        score = "" if one.iou is None else f"  IoU {100 * one.iou:5.1f} %"
        print(f"{one.name:<24} {one.answer.tokens_final:>4} tokens  {one.answer.seconds:6.3f} s{score}")
    print(f"picture: {target}")
