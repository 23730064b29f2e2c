"""What `explain` does and prints."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.commands.terminal import wrapped
from vitrail.deployment.loading import load_classifier
from vitrail.deployment.predicting import Prediction
from vitrail.errors import UsageError
from vitrail.files import explained, write_bytes
from vitrail.images import Picture, read_picture, readable_name, to_pillow
from vitrail.inspection.caveats import query_name
from vitrail.inspection.explanation import Explanation, Patch, explain
from vitrail.inspection.figure import figure
from vitrail.inspection.sheet import sheet
from vitrail.recipes.assembly import Machine


@dataclass(frozen=True)
class Question:
    """What is asked of one picture.

    Attributes:
        methods: names; none is rollout, or with `layer` the attention of that layer.
        target: the class to explain; None is the model's answer.
        layer, heads, query: of attention.
    """

    methods: Sequence[str] = ()
    target: str | None = None
    layer: int | None = None
    heads: Sequence[int] = ()
    query: str | None = None


def run_explanation(
    model: Path,
    picture: Path,
    question: Question,
    out: Path | None,
    image_size: tuple[int, int] | None,
    family: str | None,
    device: str,
    as_json: bool,
) -> int:
    """Explains one picture by one method or several; with `out` it is drawn too."""
    if out is not None:
        _check_out(out, picture)
    classifier = load_classifier(model, image_size, Machine(device).torch_device, family)
    found = [
        explain(classifier, picture, method=method, layer=question.layer, heads=question.heads or None,
                query=question.query, target=question.target)
        for method in tuple(dict.fromkeys(question.methods)) or (None,)
    ]  # fmt: skip
    answer = classifier.predict(str(picture))
    assert isinstance(answer, Prediction)
    if out is not None:
        _draw(read_picture(picture), found, answer, out)
    if as_json:
        records = [_record(one, answer, picture, out) for one in found]
        print(json.dumps(records[0] if len(records) == 1 else records, ensure_ascii=False))
    else:
        print("\n\n".join(_text(one, answer, picture, out) for one in found))
    return 0


def _check_out(out: Path, picture: Path) -> None:
    """Before any work: the name says what is written, and the picture itself is never overwritten."""
    if out.suffix.lower() != ".png":
        raise UsageError(
            "VT002", f"--out {readable_name(out)}", "a name that ends in .png",
            f"--out {readable_name(picture.stem)}.explain.png",
        )  # fmt: skip
    if out.exists() and picture.exists() and out.samefile(picture):
        raise UsageError(
            "VT002", f"--out {readable_name(out)} is the picture itself", "another name",
            f"--out {picture.stem}.explain.png",
        )  # fmt: skip


def _draw(picture: Picture, found: Sequence[Explanation], answer: Prediction, out: Path) -> None:
    """The figure as a PNG: two panels for one method, a panel each for several."""
    title = f"{_said(answer)}: {Path(readable_name(answer.file)).name}"  # a long name is cut, the answer is not
    if len(found) > 1:
        targets = [one.target for one in found if one.target is not None]
        asked = f", explained for {targets[0]}" if targets else ""
        drawn = sheet(picture, [(_label(one), one.map) for one in found], found[0].box, f"{title}{asked}")
    else:
        one = found[0]
        marked = one.query if isinstance(one.query, tuple) else None
        panel = "attention" if one.target is None else f"for {one.target}"
        drawn = figure(picture, one.map, one.box, title, _caption(one), marked, panel)
    content = io.BytesIO()
    to_pillow(drawn).save(content, "PNG")
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content.getvalue())


def _label(found: Explanation) -> str:
    return found.method if found.layer is None else f"attention, layer {found.layer}"


def _caption(found: Explanation) -> str:
    if found.target is not None:
        whole = f"{found.method}: {found.tells}."
        return f"Nearly even: {whole}" if found.evenness else whole
    if found.evenness:
        return f"Nearly even: the colours show small differences, not a shape. {_method(found).capitalize()}."
    assert found.query is not None
    return f"{_method(found)}, seen from {query_name(found.query)}. The same for every class; not importance."


def _method(found: Explanation) -> str:
    if found.target is not None:
        return f"{found.method}, for {found.target}"
    if found.layer is None:
        return "attention rollout, all layers and heads"
    if found.heads is None:
        return f"attention of layer {found.layer}, all heads"
    return f"attention of layer {found.layer}, head{'s' * (len(found.heads) > 1)} {', '.join(map(str, found.heads))}"


def _said(answer: Prediction) -> str:
    if answer.labels is not None:
        return "; ".join(answer.labels) or "no label"
    return f"{answer.label} {_percent(answer.probability)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _text(found: Explanation, answer: Prediction, picture: Path, out: Path | None) -> str:
    rows, cols = found.map.shape
    kept = f"{_percent(found.prefix_share)} of the weight stays on {found.prefix}" if found.prefix else ""
    where = out or f"--out {readable_name(picture.stem)}.explain.png draws it"
    lines = [
        _wrapped("prediction", _said(answer)),
        *([_wrapped("beware", found.evenness)] if found.evenness else []),
        _wrapped("method", f"{_method(found)} (counted from 0)" if found.layer is not None else _method(found)),
        _wrapped("shows", found.tells),
        _wrapped("defined", found.definition),
        _wrapped("spread", f"like {found.spread:.1f} of {rows * cols} patches looked at alike"),
        *([_wrapped("sum", f"off by {_percent(found.gap)} of what it should be")] if found.gap is not None else []),
        *([_wrapped("not shown", kept)] if kept else []),
        "",
        f"row,col of {rows}x{cols}   weight   times even   pixels across, down",
        *(_patch_line(patch, rows * cols) for patch in found.top),
        "",
        "What it cannot tell",
        *("\n".join(wrapped(text, "- ", "  ")) for text in found.caveats if text != found.evenness),
        "",
        _wrapped("picture", readable_name(where)),
    ]
    return "\n".join(lines)


def _wrapped(word: str, text: str) -> str:
    return "\n".join(wrapped(text, f"{word:<12}", " " * 12))


def _patch_line(patch: Patch, count: int) -> str:
    left, top, right, bottom = (round(side) for side in patch.box)
    place = f"{patch.row},{patch.col}"
    return f"{place:>14} {_percent(patch.weight):>8} {patch.weight * count:>12.1f}   {left}-{right}, {top}-{bottom}"


def _record(found: Explanation, answer: Prediction, picture: Path, out: Path | None) -> dict[str, Any]:
    """Every number, the whole map included."""
    return {
        "file": readable_name(picture),
        "label": answer.label,
        "probability": answer.probability,
        **({} if answer.labels is None else {"labels": list(answer.labels)}),
        "method": found.method,
        "layer": found.layer,
        "heads": None if found.heads is None else list(found.heads),
        "query": list(found.query) if isinstance(found.query, tuple) else found.query,
        "class": found.target,
        "map": found.map.tolist(),
        "values": found.values.tolist(),
        "gap": found.gap,
        "prefix": found.prefix,
        "prefix_share": found.prefix_share,
        "spread": found.spread,
        "top": [
            {"row": patch.row, "col": patch.col, "weight": patch.weight, "box": list(patch.box)} for patch in found.top
        ],
        "box": list(found.box),
        "class_specific": found.class_specific,
        "definition": found.definition,
        "tells": found.tells,
        "caveats": list(found.caveats),
        "picture": None if out is None else readable_name(out),
    }
