"""What `train` and `demo` print: the plan before, the result beside its baselines after."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vitrail.recipes.execute import Asked, Machine, default_folder, plan_run, train
from vitrail.recipes.judge import Result
from vitrail.recipes.plan import facts
from vitrail.report.findings import findings, next_steps
from vitrail.report.story import read_story
from vitrail.statistics import share

TOLD = 6  # findings, and next steps, on the terminal; the report has all


def run_training(
    data: str, out: Path | None, asked: Asked, machine: Machine, plan: bool, overwrite: bool, as_json: bool, quiet: bool
) -> int:
    """Shows the plan, or trains and shows the result."""
    if plan:
        source, run = plan_run(data, asked)
        found = facts(source, run, machine)
        folder = out or default_folder(source, run)
        print(json.dumps({**found, "out": str(folder)}) if as_json else plan_text(found, folder))
        return 0
    start = time.monotonic()
    result = train(data, out, asked, machine, overwrite, quiet or as_json)
    if as_json:
        baselines = {b.name: b.top1 for b in result.baselines}
        print(
            json.dumps(
                {"folder": str(result.folder), **result.summary, "baselines": baselines, "already": result.already}
            )
        )
    else:
        if not quiet and not result.already:
            print(f"took {_duration(time.monotonic() - start)}", file=sys.stderr)
        print(result_text(result))
    return 0


def plan_text(found: dict[str, Any], folder: Path) -> str:
    """The plan as a person reads it, at most 80 columns where names allow."""
    run, images = found["run"], found["images"]
    model, training = run["model"], run["training"]
    size, (height, width) = model["size"], model["image_size"]
    counts = ", ".join(f"{name} {count:,}" for name, count in images.items())
    origins = "\n".join(f"         {name}: {text}" for name, text in found["origin"].items())
    reasons = "".join(f"\n         {reason}" for reason in found["why"])
    optimizer = run["optimizer"]
    return "\n".join([
        f"Data     {found['data']}: {found['classes']} classes; {counts}",
        origins,
        f"Model    ViT, {size['depth']} layers, {size['dim']} dimensions, {size['heads']} heads, "
        f"{found['parameters'] / 1e6:.2f} M parameters",
        f"         {height}x{width} px, {found['tokens']} tokens, {model['pool']['type']}",
        f"Recipe   {found['recipe']}: {optimizer['type']}, lr {optimizer['lr']}, {run['schedule']['type']}, "
        f"batch {training['batch_size']}, {training['epochs']:g} epochs{reasons}",
        f"Cost     {found['flops_per_image'] / 1e6:,.0f} MFLOP per image forward, "
        f"{found['activation_bytes'] / 2**20:,.0f} MiB activations per batch",
        f"         {found['steps']:,} steps, about {_duration(found['training_seconds'])} of training "
        f"(measured on 5 steps)",
        f"Beat     always {found['majority']['class']}: {share(found['majority']['share'])} of train; "
        f"nearest neighbours: measured at the end",
        f"Out      {folder}    stop: Ctrl-C    go on: the same command again",
        "Plan only, nothing written. Leave out --plan to start.",
    ])  # fmt: skip


def result_text(result: Result) -> str:
    """The result beside its baselines, where it is, and what to type next."""
    rows = [("this model", share(result.top1, result.summary["top1_interval"]))]
    rows += [(baseline.name, share(baseline.top1, baseline.interval)) for baseline in result.baselines]
    head = "done already" if result.already else "done"
    lines = [f"{head}   top-1 on {result.summary['n']} test images"]
    lines += [f"       {name:<20}{value}" for name, value in rows]
    story = read_story(result.folder)
    lines += [f"{finding.severity:<6} {finding.title}" for finding in findings(story) if finding.severity != "good"][:TOLD]
    page = result.folder / "report.html"
    lines += [f"where  {page if page.is_file() else result.folder}"]
    lines += [f"{'next' if not number else '    '}   {command}" for number, (_, command) in enumerate(next_steps(story)[:TOLD])]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
