"""The pages: self-contained HTML that opens from disk, asks no host for anything and runs no script."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vitrail.files import write_text
from vitrail.report.story import Story, read_story
from vitrail.statistics import p_text, share


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # a class may be called <script>
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = _pieces
    environment.filters["kept"] = lambda text: re.sub(r"(\d) (%|points?\b)", "\\1\u00a0\\2", text)  # on one line
    return environment


def _pieces(name: str) -> list[str]:
    """A file name in pieces between which it may break: after its signs, not within "png"."""
    return [part for part in re.findall(r"[^/_-]*[/_-]?", name) if part]


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A template of this folder with its facts; every text in them stays text."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return str(_environment().get_template(template).render(style=style, **facts))


def run_page(story: Story) -> str:
    """The report of a run."""
    from vitrail.report.sections import facts_of

    return render("run.html", facts_of(story))


def write_report(folder: Path) -> Path:
    """Rebuilds report.html from the run folder alone.

    Raises:
        UsageError: VT026, the folder is no run folder.
    """
    path = folder / "report.html"
    write_text(path, run_page(read_story(folder)))
    return path


def data_page(facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> str:
    """What `vitrail data check` found, as a page.

    Args:
        facts: "source", "counts" (images per split and class) and "examination" (as in data.json).
        thumbnails: WebP of some of the images that the problems name, by id.
    """
    from vitrail.report.sections import data_facts

    return render("data.html", data_facts(facts, thumbnails))


def compare_page(found: Mapping[str, Any]) -> str:
    """Two runs side by side; `found` is what `comparison` says of them."""
    from vitrail.report.charts import Series, line_chart

    curves = [
        Series(f"{side.upper()}: {found[side]['name']}", [x for x, _ in points], [y for _, y in points], side == "b")
        for side, points in found["curves"].items()
    ]
    matched = found["matched"]
    lost = {"only_a": "only A has", "only_b": "only B has", "repeated": "stand in a table twice"}
    facts = {
        "title": f"{found['a']['name']} and {found['b']['name']}",
        "left_out": [
            f"{matched[key]:,} pictures are not compared: {text}." for key, text in lost.items() if matched[key]
        ],
        "beyond": sum(row["significant"] for row in found["classes"]),
        "class_rows": [_class_row(row) for row in found["classes"]],
        "changed_rows": [
            (title, [_changed_row(row) for row in found["changed"][key]])
            for title, key in (("A right, B wrong", "lost"), ("B right, A wrong", "gained"))
        ],
        "difference_rows": [
            (anchor, name, [(row["key"], json.dumps(row["a"]), json.dumps(row["b"])) for row in found[anchor]])
            for anchor, name in (("configuration", "Configuration"), ("data", "Data"))
        ],
        "cost_rows": [_cost_row(row) for row in found["cost"]],
        "chart": line_chart("Top-1 of the validation pictures", "epoch", "top-1", curves, percent=True),
    }
    shown = {"notes": facts["left_out"] or found["notes"], "classes": found["classes"], "cost": found["cost"],
             "course": facts["chart"]}  # fmt: skip
    names = {"notes": "Notes", "right": "Who is right", "classes": "Classes", "changed": "Changed pictures",
             "configuration": "Configuration", "data": "Data", "cost": "Cost", "course": "Learning"}  # fmt: skip
    sections = [(anchor, name) for anchor, name in names.items() if shown.get(anchor, True)]
    return render("compare.html", {**found, **facts, "sections": sections})


def _class_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (share(row["a"]), share(row["b"]), f"{100 * row['difference']:+.1f}")
    return row["name"], f"{row['n']:,}", *shares, p_text(row["adjusted_p"]).removeprefix("= ")


def _changed_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["file"], row["label"], row["a"], f"{row['a_prob']:.2f}", row["b"], f"{row['b_prob']:.2f}"


def _cost_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
    return f"{row['name']} {row['unit']}".strip(), f"{row['a']:,.4g}", f"{row['b']:,.4g}", ratio
