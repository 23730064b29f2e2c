"""The axis `evaluators`: protocols that are measured while a model trains, and how their numbers are called."""

import json
import os
import shutil
from pathlib import Path

import pytest

import tiny
from vitrail.commands.features import PROTOCOLS
from vitrail.data.sources import open_source
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.own_pictures import ON_OWN_PICTURES
from vitrail.recipes.classification import from_scratch
from vitrail.recipes.run import EVALUATORS, FROZEN


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.write_pictures(tmp_path_factory.mktemp("pictures") / "data")


def evaluated(run):
    return [record for record in tiny.records(run.folder) if "val/top1" in record]


def copies(pictures, root, names):
    """The images of val in folders, each class called by another name."""
    for identity in open_source(str(pictures)).split("val").ids:
        place = root / names[Path(identity).parent.name]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / identity, place)
    return str(root)


def test_evaluators_run_while_a_model_trains_and_change_nothing(pictures, tmp_path):
    """Numbers in the log, weights bit for bit those of a run without; sets made of val know what val knows."""
    dark, light = tiny.CLASSES
    same = copies(pictures, tmp_path / "same", {dark: "Dark_below", light: "light-below"})
    turned = copies(pictures, tmp_path / "turned", {dark: light, light: dark})
    every = [{"type": name} for name in EVALUATORS if name not in ON_OWN_PICTURES]
    every += [{"type": "mapped", "path": same}, {"type": "few-shot", "shots": [2]}, {"type": "mapped", "path": turned}]
    plain = tiny.tiny(pictures, tmp_path / "plain")
    watched = tiny.tiny(pictures, tmp_path / "watched", evaluators=json.dumps(every))
    assert tiny.digests(plain.folder) == tiny.digests(watched.folder)
    *_, last = records = evaluated(watched)
    assert {"few-shot/5-shot", "neighbours/top1", "linear-probe/top1", "logistic-probe/top1"} <= set(last)
    assert {"calibration/ece", "calibration/brier", "conformal/coverage", "conformal/set-size"} <= set(last)
    assert {"abstention/aurc", "abstention/answered"} <= set(last)
    assert "few-shot-2/2-shot" in last and "few-shot/2-shot" not in last
    assert set(FROZEN) == set(PROTOCOLS)
    for record in records:
        assert record["mapped/all-top1"] == record["mapped/own-top1"] == pytest.approx(record["val/top1"])
        assert record["mapped-2/all-top1"] == pytest.approx(1 - record["val/top1"])
    assert last["val/top1"] != 0.5


def test_real_labels_are_watched(tmp_path):
    """A thousand classes; ReaL's labels are once those of val and once all others."""
    tiny.write_pictures(tmp_path / "once", 1)
    one, other = ((tmp_path / "once" / name / "00.png") for name in tiny.CLASSES)
    lines, labels = ["path,label,split"], [0, 0, 0, 1, 2]
    (tmp_path / "val").mkdir()
    for number in range(1000):
        lines += [f"{one},class {number:03d},train"] + 2 * [f"{other},class 000,train"] * (number < 200)
    for number, label in enumerate(labels):
        place = tmp_path / "val" / f"ILSVRC2012_val_{number + 1:08d}.png"
        os.link(other, place)
        lines.append(f"{place},class {label:03d},val")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    right, wrong = [[label] for label in labels], [sorted({*range(1000)} - {label}) for label in labels]
    asked = []
    for name, real in (("right", right), ("wrong", wrong)):
        (tmp_path / f"{name}.json").write_text(json.dumps(real))
        asked.append({"type": "real", "path": str(tmp_path), "labels": str(tmp_path / f"{name}.json")})
    run = tiny.tiny(
        tmp_path / "set.csv",
        tmp_path / "run",
        evaluators=json.dumps(asked),
        training__batch_size=256,
        training__epochs=4,
    )
    for record in (records := evaluated(run)):
        assert record["real/top1"] == pytest.approx(record["val/top1"])
        assert record["real-2/top1"] == pytest.approx(1 - record["val/top1"])
    assert records[-1]["real/top1"] == 0.6


def test_evaluators_that_cannot_measure_are_refused_before_training(tmp_path):
    folder = tiny.write_pictures(tmp_path / "few", per_class=6)
    stranger = str(tiny.write_pictures(tmp_path / "stranger", 1, classes=("other", "light below")))
    for evaluator, code in (
        ({"type": "few-shot", "shots": [25]}, "VT103"),
        ({"type": "mapped", "path": stranger}, "VT117"),
        ({"type": "mapped", "path": str(tmp_path / "nowhere")}, "VT011"),
        ({"type": "real", "path": stranger}, "VT117"),
        ({"type": "mapped", "path": stranger, "classes": "nowhere.txt"}, "VT002"),
    ):
        with pytest.raises((DataError, UsageError)) as refused:
            tiny.tiny(folder, tmp_path / "run", evaluators=json.dumps([evaluator]))
        assert refused.value.code == code and not (tmp_path / "run" / "config.json").exists()
    assert open_source(str(folder)).split("train")


def test_names_of_evaluators(pictures):
    """The first of a type has its name, the others a number; the same twice, or a set without a path, is refused."""
    run = from_scratch(open_source(str(pictures)))
    settings = [(1,), (5,), (1, 5)]
    asked = [{"type": "few-shot", "shots": shots} for shots in settings]
    several = run.changed({"evaluators": json.dumps([asked[0], {"type": "neighbours"}, *asked[1:]])})
    assert list(several.watched) == ["few-shot", "neighbours", "few-shot-2", "few-shot-3"]
    assert [several.watched[name].shots for name in ("few-shot", "few-shot-2", "few-shot-3")] == settings
    assert list(run.changed({"evaluators": "calibration,few-shot"}).watched) == ["calibration", "few-shot"]
    for text, mention in (
        (json.dumps([asked[0], asked[1], asked[0]]), "few-shot is there twice with the same settings"),
        ("neighbours,neighbours", "neighbours is there twice"),
        ("few-shot,real", "evaluators, real: missing path"),
    ):
        with pytest.raises(UsageError, match=mention) as refused:
            run.changed({"evaluators": text})
        assert refused.value.code == "VT003"
