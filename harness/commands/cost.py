"""`cost`: projected costs at full size."""

from __future__ import annotations

import sys

from harness.commands.options import (
    Attn,
    Budgets,
    Debug,
    Explain,
    Gpu,
    Plugins,
    ProjectedBackbone,
    Pruners,
    Sharing,
    TextTokens,
    TokenizerOf,
    import_plugins,
    one_backbone,
)
from harness.commands.tables import Export, export_to


def cost(
    backbone: ProjectedBackbone = "glamm-7b",
    pruners: Pruners = "all",
    budgets: Budgets = "64,128,192",
    text_tokens: TextTokens = None,
    checkpoint: TokenizerOf = None,
    gpu: Gpu = "h100",
    attn: Attn = "sdpa",
    explain: Explain = False,
    sweep: Sharing = False,
    plugin: Plugins = [],  # noqa: B006
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Project what every pruner costs at full size, beside the published numbers, from shapes alone:
    glamm-7b, glamm-mini, or another backbone whose shapes are known."""
    import backbones
    from harness.plan import Plan
    from harness.ranges import check_numbers

    check_numbers(text_tokens=text_tokens)
    import_plugins(plugin)
    plan = Plan(pruners=pruners, budgets=budgets, backbones=one_backbone(backbone), attn=attn)  # type: ignore[arg-type]
    chosen, name = plan.chosen(), plan.backbones[0]

    from harness.cost import EXPLAIN, projection, sharing
    from harness.cost.lines import lines_of
    from harness.cost.roofline import gpu as sheet
    from harness.cost.store import BASELINE
    from harness.engine.cells import impossible
    from harness.engine.served import served
    from pruners.errors import UserError
    from reports import efficiency, sheets

    on, settings = sheet(gpu), backbones.with_files(backbones.one(name), checkpoint=checkpoint)
    model = settings.shapes()
    if model is None:
        known = [
            one for one in backbones.names() if backbones.get(one).shapes is not backbones.Settings.shapes
        ]
        raise UserError(f"The shapes of {settings.name} are not known; give {' or '.join(known)}.")
    prompt = model.prompt(text_tokens, checkpoint)
    able, left_out = served(chosen, settings)
    grid, layers, stated = model.grid, model.shape.layers, settings.stated
    lines = lines_of(able, plan.budgets, 0, grid, layers, stated)
    refused = impossible(able, plan.budgets, grid, layers, stated)
    for why in dict.fromkeys((*left_out.values(), *map(str, refused.values()))):
        print(why, file=sys.stderr)
    if sweep:
        lines = [line for line in lines if line.pruner.kind == "method" or line.name == BASELINE]
        accounts = {}
        for talks, one in ((1, prompt), (prompt.turns, prompt.alone())):
            title = f"{talks} conversation{'s' * (talks > 1)} of {one.turns} ({one.text} text tokens)"
            accounts[title] = sharing.account(
                projection.project(model, lines, one, attn=attn), lines, one, talks
            )
        print(
            f"# {name}, a sweep, projected; controls but {BASELINE} left "
            f"out\n\n{efficiency.sharing_table(accounts)}"
        )
        if export is not None:
            export_to(export, sheets.sharing_sheet(name, accounts))
        return
    projected = projection.project(model, lines, prompt, attn=attn)
    print(f"# {name}, projected\n")
    print(efficiency.render_projection(projected, settings.name, prompt, attn, on))
    if explain:
        print(*(f"- {column}: {text}." for column, text in EXPLAIN.items()), sep="\n")
    if export is not None:
        export_to(export, sheets.projection_sheet(projected, name, settings.name, prompt, attn, on))
