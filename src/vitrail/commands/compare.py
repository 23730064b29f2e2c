"""What `compare` prints: the verdict first, then what it rests on; of three runs or more a table of recipes over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.commands.terminal import width, wrapped
from vitrail.errors import UsageError
from vitrail.files import explained, write_text
from vitrail.report.comparison import comparison
from vitrail.report.seeds import seed_table
from vitrail.statistics import Spread, p_text, share, spread_text

EXAMPLES = 5
SETTINGS = 6  # of a recipe that are printed

Facts = dict[str, Any]


def run_compare(a: Path, b: Path, split: str, out: Path | None, as_json: bool) -> int:
    """Compares two run folders; `out` gets the page."""
    found = comparison(a, b, split)
    if out is not None:
        from vitrail.report.page import compare_page

        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, compare_page(found))
    if as_json:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        print(comparison_text(found) + (f"\nwhere  {out}" if out is not None else ""))
    return 0


def run_seeds(folders: Sequence[Path], split: str, out: Path | None, as_json: bool) -> int:
    """Three run folders or more: a row for each recipe, over its seeds."""
    if out is not None:
        raise UsageError("VT002", f"--out {out} with {len(folders)} runs", "two runs: a page compares A with B",
                         "--json gives the table as data")  # fmt: skip
    found = seed_table(folders, split)
    print(json.dumps(found, ensure_ascii=False, allow_nan=False) if as_json else seeds_text(found))
    return 0


def seeds_text(found: Facts) -> str:
    """As a person reads it, at most 80 columns."""
    recipes = found["recipes"]
    runs = sum(len(recipe["runs"]) for recipe in recipes)
    lines = [f"top-1 of the same {found['images']:,} pictures of {_short(found['split'], 30)}: {runs} runs, "
             f"{len(recipes)} recipe{'s'[:len(recipes) > 1]}"]  # fmt: skip
    for number, (recipe, against) in enumerate(zip(recipes, [None, *found["against_first"]], strict=True), start=1):
        lines += ["", f"{number}      {spread_text(Spread.from_json(recipe))}"]
        apart = [f"{_short(key, 36)}: {value}" for key, value in recipe["differs"].items()]
        for said in apart[:SETTINGS]:
            lines += _wrapped(_short(said, 400))
        if len(apart) > SETTINGS:
            lines += _wrapped(f"and {len(apart) - SETTINGS} more settings, which --json names")
        for run in recipe["runs"]:
            state = "" if run["state"] == "done" else f"  not finished ({run['state']})"
            room = width() - 36
            lines.append(
                f"       {_short(run['folder'], room):<{room}} seed {run['seed']!s:<6} {share(run['top1'])}{state}"
            )
        if number > 1:
            lines += _wrapped(_against(against))
    return "\n".join(_printable(line) for line in lines)


def _against(against: Facts | None) -> str:
    if against is None:
        return "against 1: more seeds of both would say"
    low, high = (100 * bound for bound in against["interval"])
    return (
        f"against 1: {100 * against['difference']:+.1f} points (95 % CI {low:+.1f} to {high:+.1f}), {against['word']}"
    )


def comparison_text(found: Facts) -> str:
    """As a person reads it, at most 80 columns; longer names are cut, `--json` has them whole."""
    parts = [_head, _verdict, _agreement, _classes, _changed, _differences, _cost]
    lines = [line for part in parts for line in part(found)]
    return "\n".join(_printable(line) for line in lines)


def _head(found: Facts) -> Iterator[str]:
    matched = found["matched"]
    for side in ("a", "b"):
        one = found[side]
        room = width() - 40
        yield from _wrapped(
            f"{_short(one['folder'], room):<{room}} {share(one['top1'], one['top1_interval'])}", f"{side.upper()}      "
        )
    yield from _wrapped(f"top-1 of the same {matched['n']:,} pictures of {_short(found['split'], 30)}")
    baselines = [f"{side.upper()} {one['name']} {share(one['top1'])}" for side in ("a", "b")
                 if (one := found[side]["baseline"])]  # fmt: skip
    if baselines:
        yield from _wrapped(f"best baseline: {', '.join(baselines)}")
    lost = [f"{matched[key]:,} {text}" for key, text in (
        ("only_a", "only A has"), ("only_b", "only B has"), ("other_label", "with another label"),
        ("trained_on", "trained on"), ("repeated", "repeated rows"),
    ) if matched[key]]  # fmt: skip
    if lost:
        yield from _wrapped(f"not compared: {', '.join(lost)}")


def _verdict(found: Facts) -> Iterator[str]:
    yield ""
    yield from _wrapped(found["verdict"]["sentence"])
    for note in found["notes"]:
        yield from _wrapped(note, "note   ")


def _agreement(found: Facts) -> Iterator[str]:
    top1, loss = found["top1"], found["loss"]
    yield ""
    sides = f"both {top1['both']:,}, only A {top1['only_a']:,}, only B {top1['only_b']:,}, neither {top1['neither']:,}"
    yield from _wrapped(sides, "right  ")
    if loss is None:
        yield "loss   not compared: some are no finite numbers"
    else:
        low, high = loss["interval"]
        change = f"{loss['difference']:+.4f} (95 % CI {low:+.4f} to {high:+.4f})"
        yield from _wrapped(f"A {loss['a']:.4f}, B {loss['b']:.4f}: {change}", "loss   ")


def _classes(found: Facts) -> Iterator[str]:
    rows = found["classes"]
    sure = [row for row in rows if row["significant"]]
    if not rows:
        return
    yield ""
    yield from _wrapped(
        f"{len(sure)} of {len(rows)} differ beyond chance (McNemar, Holm-adjusted p < {found['level']:g})", "class  "
    )
    for row in sure[:20]:
        yield from _wrapped(
            f"{_short(row['name'], 20):<20} n {row['n']:<6,} A {share(row['a']):>7}  B {share(row['b']):>7}  "
            f"{100 * row['difference']:+6.1f}  p {p_text(row['adjusted_p'])}"
        )


def _changed(found: Facts) -> Iterator[str]:
    for key, text in (("lost", "A right, B wrong"), ("gained", "B right, A wrong")):
        rows = found["changed"][key]
        if rows:
            yield ""
            yield f"{key:<6} {text}: {len(rows):,}" + (f", the surest {EXAMPLES}" if len(rows) > EXAMPLES else "")
        for row in rows[:EXAMPLES]:
            said = "  ".join(
                f"{side.upper()} {_short(row[side], 14):<14} {row[f'{side}_prob']:.2f}" for side in ("a", "b")
            )
            yield from _wrapped(f"{_short(row['file'], 27):<27}  {said}")


def _differences(found: Facts) -> Iterator[str]:
    for word, key in (("config", "configuration"), ("data", "data")):
        yield ""
        if not found[key]:
            yield f"{word:<6} the same"
        for index, row in enumerate(found[key]):
            name = f"{word if not index else '':<6} {_short(row['key'], 30)}"
            values = [json.dumps(row[side], ensure_ascii=False) for side in ("a", "b")]
            if len(line := f"{name}: {values[0]} -> {values[1]}") <= width():
                yield line
            else:
                yield f"{name}:"
                yield from (
                    f"         {side} {_short(text, width() - 11)}" for side, text in zip("AB", values, strict=True)
                )


def _cost(found: Facts) -> Iterator[str]:
    for index, row in enumerate(found["cost"]):
        if not index:
            yield ""
        ratio = f"  x{row['ratio']:.2f}" if row["ratio"] is not None else ""
        values = "  ".join(f"{side.upper()} {_number(row[side], row['unit']):>18}" for side in ("a", "b"))
        yield from _wrapped(f"{row['name']:<16} {values}{ratio}", f"{'cost' if not index else '':<6} ")


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        value, unit = value / 1e6, "MB"
    return (f"{value:,.1f}" if isinstance(value, float) and value < 1e6 else f"{value:,.0f}") + f" {unit}".rstrip()


def _wrapped(text: str, first: str = "       ") -> Iterator[str]:
    kept = text.replace(" = ", "\u00a0=\u00a0").replace(" points", "\u00a0points")  # not torn from their numbers
    for line in wrapped(kept, first, "       "):
        yield line.replace("\u00a0", " ")


def _short(text: str, width: int) -> str:
    """The end of a name tells more than its beginning."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _printable(line: str) -> str:
    """Names come from outside: no line breaks, no colours, nothing that a terminal obeys."""
    return "".join(sign if sign.isprintable() else "?" for sign in line)
