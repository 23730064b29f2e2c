"""What `--plan` prints: a run before anything costs time, at most 80 columns where names allow."""

from __future__ import annotations

from typing import Any

from vitrail.commands.terminal import wrapped
from vitrail.data.delivery import WORTH
from vitrail.statistics import duration, share

SHOWN = 6  # problems of the data
WORDS = {
    "new": "new; nothing is there yet",
    "started": "begun before; the same command goes on from its last saved state",
    "done": "done already; the same command shows the result and computes nothing",
}


def plan_text(found: dict[str, Any]) -> str:
    """The plan as a person reads it, from its JSON."""
    rows = [*_data(found), *_model(found), *_cost(found), *_without_room(found), *_beat(found), *_end(found)]
    lines = (wrapped(f"{head:<9}{text}", "", " " * (11 if text.startswith("  ") else 9)) for head, text in rows)
    return "\n".join(line.rstrip() for several in lines for line in several)


Rows = list[tuple[str, str]]


def _data(found: dict[str, Any]) -> Rows:
    counts = ", ".join(f"{name} {count:,}" for name, count in found["images"].items())
    rows = [("Data", f"{found['data']}: {found['classes']} classes; {counts}")]
    rows += [("", f"{name}: {text}") for name, text in found["origin"].items() if text != "given"]
    examined = found["examination"]
    problems = examined["problems"]
    for problem in problems[:SHOWN]:
        rows += [("", f"{problem['severity']}: {problem['title']}")]
    if len(problems) > SHOWN:
        rows += [("", f"and {len(problems) - SHOWN} more")]
    rough = "" if examined["seen"] >= examined["of"] else "rough: "
    seen = f"{rough}looked at {examined['seen']:,} of {examined['of']:,} pictures"
    all_seen = examined["seen"] >= examined["of"]
    rows += [
        (
            "",
            f"{seen}{'' if problems else ': nothing wrong'}"
            + ("" if all_seen else f"; all of them: vitrail data check {found['data']}"),
        )
    ]
    return rows


def _model(found: dict[str, Any]) -> Rows:
    run = found["run"]
    model, training, optimizer = run["model"], run["training"], run["optimizer"]
    names = [optimizer["type"]]
    while isinstance(optimizer.get("optimizer"), dict):  # one that wraps another
        optimizer = optimizer["optimizer"]
        names.append(optimizer["type"])
    height, width = model["image_size"]
    start = f"weights of {run['weights']}" if run["weights"] else "random weights"
    parts = f" in parts of {training['micro_batch']}" if training["micro_batch"] else ""
    return [
        ("Model", found["model"]),
        ("", f"{found['parameters'] / 1e6:.2f} M parameters, {height}x{width} px, {found['tokens']} tokens, {start}"),
        ("Recipe", f"{found['recipe']}: {' of '.join(names)}, lr {optimizer['lr']}, {run['schedule']['type']}, "
                   f"batch {training['batch_size']}{parts}, {training['epochs']:g} epochs"),
        *(("", reason) for reason in found["why"]),
        *_grid(run),
    ]  # fmt: skip


def _grid(run: dict[str, Any]) -> Rows:
    if not run["grid"]:
        return []
    rates, share = ", ".join(f"{rate:g}" for rate in run["grid"]["rates"]), run["grid"]["share"]
    length = "as many steps as the run" if share == 1 else f"{share:.0%} of the steps of the run"
    text = f"lr {rates}: each tried on train for {length}, the best on val is taken"
    return [("", text + ("; then train and val are trained on" if run["data"]["everything"] else ""))]


def _cost(found: dict[str, Any]) -> Rows:
    tried, seconds = found["tried"], {part["name"]: part["seconds"] for part in found["parts"]}
    training = found["run"]["training"]
    measured = f"measured on {tried['steps']} steps"
    if tried["layers"] < found["layers"]:
        measured += f" of {tried['layers']} of the {found['layers']} layers"
    if tried["images_per_step"] < training["batch_size"]:
        measured += f" of {tried['images_per_step']} images"
    choosing = seconds.get("choosing the learning rate", 0.0)
    main = sum(seconds[name] for name in ("training", "evaluating", "saving"))
    before = sum(seconds[name] for name in ("opening", "reading", "preparing"))
    after = sum(seconds.values()) - main - before - choosing
    free = found["available"]
    machine = found["machine"]
    workers = machine["workers"]
    helpers = "workers where they help" if workers is None else f"{workers} worker{'s' * (workers != 1)}"
    pictures = f"batches take {machine['making_share']:.0%} of a step to make"
    if machine["making_share"] > WORTH and workers == 0:
        pictures += ", which --workers 2 would do beside it"
    rows = [
        ("Machine", f"{machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}, "
                    f"{training['precision']}, {helpers}: {pictures}"),
        ("Cost", f"{found['flops_per_image'] / 1e6:,.0f} MFLOP an image forward; {found['steps']:,} steps, {measured}"),
        ("", f"time    {duration(found['seconds'])}: reading {duration(before)}, "
             + (f"trying rates {duration(choosing)}, " if choosing else "") + f"training {duration(main)}, "
             f"judging {duration(after)}"),
        ("", f"memory  {size(found['memory_bytes'])} more than at the start, {size(found['resident_bytes'])} in all"
             + _free(free["memory"])),
    ]  # fmt: skip
    if found["device_bytes"] is not None:
        rows.append(("", f"device  {size(found['device_bytes'])}{_free(free['device'])}"))
    return [*rows, ("", f"disk    {size(found['disk_bytes'])}{_free(free['disk'])}")]


def _free(room: int | None) -> str:
    return "" if room is None else f"; {size(room)} are free"


def _without_room(found: dict[str, Any]) -> Rows:
    if found["fits"]:
        return []
    choices = found["alternatives"]
    fit = any(choice["fits"] for choice in choices)
    rows = [("No room", "this run does not fit. " + ("What would:" if fit else "Nor would, each for itself:"))]
    rows.append(("", f"{'memory':>9}  {'disk':>9}  {'time':>12}   add"))
    for choice in choices:
        needed = choice["device_bytes"] if choice["device_bytes"] is not None else choice["memory_bytes"]
        mark = "" if choice["fits"] else "   (does not fit alone)"
        rows.append(
            (
                "",
                f"{size(needed):>9}  {size(choice['disk_bytes']):>9}  {duration(choice['seconds']):>12}   {choice['flag']}{mark}",
            )
        )
    if found["available"]["disk"] is not None and found["disk_bytes"] > found["available"]["disk"]:
        rows.append(("", f"or a place with {size(found['disk_bytes'])} free: --out FOLDER"))
    return rows


def _beat(found: dict[str, Any]) -> Rows:
    rows = []
    for head, baseline in zip(("Beat", ""), found["baselines"], strict=True):
        rows += [
            (head, f"{baseline['name']:<20}{share(baseline['top1'], baseline['interval'])}"),
            ("", f"  {baseline['how']}"),
        ]
    return rows


def _end(found: dict[str, Any]) -> Rows:
    return [
        ("Out", f"{found['out']}   {WORDS[found['state']]}"),
        ("", "stop: Ctrl-C   go on: the same command again"),
        ("Plan only, nothing written. Leave out --plan to start.", ""),
    ]


def size(count: float) -> str:
    """Bytes for people: "641 MB", "2.1 GB"; thousands, as disks are sold and df -H shows them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
