"""The pages: self-contained HTML that opens from disk, asks no host for anything and runs no script."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vitrail.files import write_text
from vitrail.report.story import Story, read_story


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # a class may be called <script>
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A template of this folder with its facts; every text in them stays text."""
    from markupsafe import Markup

    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
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
