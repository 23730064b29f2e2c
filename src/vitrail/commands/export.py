"""What `export` does and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

from vitrail import __version__
from vitrail.commands.calibration import calibrated, sensitivity_text
from vitrail.commands.evaluation import source_of
from vitrail.commands.terminal import wrapped
from vitrail.data.sources import Source, open_source
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.export import SUFFIXES, Wanted, Written, export
from vitrail.deployment.loading import load_classifier
from vitrail.deployment.passport import Inside, Precision, Target
from vitrail.deployment.predicting import pictures_below
from vitrail.deployment.verification import MOST_IMAGES, Evidence
from vitrail.errors import DataError, UsageError, VitrailError, nearest
from vitrail.files import explained, read_json, write_json
from vitrail.images import read_picture


def run_export(
    model: Path,
    to: str,
    precision: str = "float32",
    sizes: Sequence[tuple[int, int]] = (),
    inside: str | None = None,
    out: Path | None = None,
    data: str | None = None,
    max_drop: float = 0.5,
    overwrite: bool = False,
    family: str | None = None,
    as_json: bool = False,
) -> int:
    """Exports, checks, and prints the check as a table."""
    wanted = _wanted(to, precision, sizes, inside, max_drop)
    is_run = (model / "data.json").is_file()
    path = _path(model, wanted, out, is_run, overwrite)
    classifier = load_classifier(model, None, "cpu", family)
    told = (lambda text: None) if as_json else (lambda text: print(text, file=sys.stderr))
    evidence, calibration = _evidence(model, classifier, data, wanted, is_run)
    written = export(classifier, wanted, path, evidence, _source(model, classifier), calibration, told)
    if is_run:
        _keep(model / "export" / "parity.json", written)
    if as_json:
        print(
            json.dumps(
                {"path": str(path), "bytes": written.bytes, **written.passport.check, **_int8(written)},
                ensure_ascii=False,
            )
        )
    else:
        print("\n".join(_text(written)))
    return 0


def _wanted(to: str, precision: str, sizes: Sequence[tuple[int, int]], inside: str | None, max_drop: float) -> Wanted:
    for name, given, known in (("--to", to, SUFFIXES), ("--precision", precision, get_args(Precision))):
        if given not in known:
            raise UsageError("VT002", f"{name} {given}", nearest(given, known))
    parts = [] if inside == "none" else (inside or ",".join(get_args(Inside))).split(",")
    if unknown := [part for part in parts if part not in get_args(Inside)]:
        raise UsageError("VT002", f"--inside {unknown[0]}", nearest(unknown[0], [*get_args(Inside), "none"]))
    listed, within = tuple(dict.fromkeys(sizes)), tuple(dict.fromkeys(parts))
    return Wanted(cast(Target, to), cast(Precision, precision), listed, cast("tuple[Inside, ...]", within), max_drop)


def _path(model: Path, wanted: Wanted, out: Path | None, is_run: bool, overwrite: bool) -> Path:
    """RUN/export/RUN.onnx, or beside the weights; another precision than float32 is in the name."""
    suffix, name = SUFFIXES[wanted.target], model.resolve().name if model.is_dir() else model.stem
    kind = "" if wanted.precision == "float32" else f"-{wanted.precision}"
    path = out or (model / "export" if is_run else model.parent) / f"{name}{kind}{suffix}"
    if path.suffix != suffix:
        raise UsageError("VT152", f"--out {path} with --to {wanted.target}", f"a name that ends in {suffix}")
    again = is_run and out is None  # RUN/export is Vitrail's own
    if path.is_dir() or (path.exists() and not again and not overwrite):
        raise UsageError("VT153", f"{path} is there already", "a new name", "another --out, or --overwrite")
    return path


def _evidence(
    model: Path, classifier: Classifier, data: str | None, wanted: Wanted, is_run: bool
) -> tuple[Evidence, Callable[[Any], Any] | None]:
    """The pictures to check on, and for int8 what calibrates."""
    if wanted.precision == "int8":
        return calibrated(classifier, source_of(model, data, is_run), wanted)
    if data is not None and Path(data).is_dir():
        paths = list(pictures_below(Path(data)))
        ids = tuple(str(path.relative_to(data)) for path in paths)
        channels = classifier.preprocessing.channels
        return Evidence(data, ids, lambda i: read_picture(paths[i], channels)).spread(MOST_IMAGES), None
    if data is None and not is_run:
        if wanted.precision != "float32":
            raise _nothing_to_check_on(model, wanted)
        print("checked on Vitrail's own pictures, for want of others: --data FOLDER names yours", file=sys.stderr)
        return _of(open_source("fashion-mini"), "val", "Vitrail's own pictures (fashion-mini)", classifier), None
    source = source_of(model, data, is_run)
    split = next(name for name in ("val", "test", "train") if name in source.splits)
    return _of(source, split, f"{source.name}, {split}", classifier), None


def _of(source: Source, split: str, name: str, classifier: Classifier) -> Evidence:
    dataset, channels = source.split(split), classifier.preprocessing.channels
    return Evidence(name, dataset.ids, lambda index: dataset.read(index, channels)).spread(MOST_IMAGES)


def _nothing_to_check_on(model: Path, wanted: Wanted) -> DataError:
    return DataError(
        "VT154", f"{model} has no pictures of its own, and {wanted.precision} may change what the model says of yours",
        "pictures like those that it will see", "--data FOLDER",
    )  # fmt: skip


def _source(model: Path, classifier: Classifier) -> dict[str, Any]:
    """Where the weights come from; names and fingerprints, no folders of this machine."""
    libraries = {name: version(name) for name in ("torch", "onnx", "openvino", "nncf") if _installed(name)}
    facts = {"model": model.resolve().name, "fingerprint": classifier.fingerprint(), "vitrail": __version__}
    provenance = {str(key): str(value) for key, value in classifier.checkpoint.provenance.items()}
    return facts | {"words": classifier.checkpoint.config.words, "libraries": libraries, "provenance": provenance}


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _keep(path: Path, written: Written) -> None:
    """RUN/export/parity.json: what was measured of every export of the run."""
    try:
        known = read_json(path) if path.is_file() else {}
    except VitrailError as error:  # the export itself is good, and what was measured of it stands in its passport
        print(f"{error.what}: it is written anew, with this export alone", file=sys.stderr)
        known = {}
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    facts = dict(written.passport.check) | _int8(written)
    write_json(path, (known if isinstance(known, dict) else {}) | {written.path.name: facts})


def _int8(written: Written) -> dict[str, Any]:
    """How int8 came about, where it did: layers that were spared, sensitivity of all."""
    facts = written.passport.source
    return {"int8": facts["int8"]} if "int8" in facts else {}


def _text(written: Written) -> list[str]:
    check, passport = written.check, written.passport
    about = f"against PyTorch in float32, on {check.rows[0].images} pictures ({check.source}), in {check.engine}"
    lines = [f"{'size':>9} {'batch':>5} {'same first class':>18} {'largest difference':>20}"]
    for row in check.rows:
        same = f"{row.same} of {row.images}"
        drop = (
            ""
            if row.drop is None
            else f"  {row.drop[0]:+.2f} points (95 % CI {row.drop[1]:+.2f} to {row.drop[2]:+.2f})"
        )
        lines.append(f"{row.size[0]:>4}x{row.size[1]:<4} {row.batch:>5} {same:>18} {row.largest:>20.1e}{drop}")
    if "int8" in passport.source:
        lines += sensitivity_text(passport.source["int8"])
    close = sorted({name for row in check.rows for name in row.close})
    if close:
        lines += wrapped(f"as near to each other as rounding: {', '.join(close[:5])}", "  ", "  ")
    size = f"{written.bytes / 1e6:.1f} MB, {passport.precision}"
    next_ = (
        "torch.export.load(PATH).module()"
        if passport.target == "torch-export"
        else f"vitrail predict {written.path} PICTURE"
    )
    return [*lines, *wrapped(about, "", ""), f"written  {written.path} ({size})", f"next     {next_}"]
