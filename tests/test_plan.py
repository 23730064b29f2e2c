"""What a plan says: it writes nothing, takes the run's own steps, and knows what fits."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from vitrail.commands.plan import plan_text
from vitrail.errors import OutOfMemory
from vitrail.recipes.execute import Asked, Machine
from vitrail.recipes.plan import plan
from vitrail.recipes.room import Room, is_shortage
from vitrail.training.loop import Trainer


def planned(data, tmp_path, room=None, **changes):
    settings = tiny.SETTINGS | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return plan(str(data), tmp_path / "run", Asked(settings=settings), Machine("cpu"), room=room)


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_nothing_is_written_and_the_runs_own_step_is_taken(pictures, tmp_path, monkeypatch):
    taken, advance = [], Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self, batch: taken.append(len(batch.ids)) or advance(self, batch))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = snapshot(Path(pictures))
    found = planned(pictures, tmp_path).to_json()
    assert taken and set(taken) == {8} and snapshot(tmp_path) == {} and snapshot(Path(pictures)) == before
    assert found["steps"] == 12 and found["fits"] and found["state"] == "new"
    assert found["seconds"] > 0 and found["memory_bytes"] >= 0
    assert [baseline["name"] for baseline in found["baselines"]] == ["majority class", "nearest neighbours"]


def test_problems_of_the_data_are_told_before_anything_costs_time(tmp_path):
    root = tiny.write_pictures(tmp_path / "data", per_class=12, side=24)
    for split in ("train", "test"):
        (root / split).mkdir()
    for number, path in enumerate(sorted(root.glob("*/*.png"))):
        split = "test" if number % 4 == 0 else "train"
        path.rename(
            (root / split / path.parent.name / path.name)
            if (root / split / path.parent.name).is_dir()
            else _moved(path, root / split)
        )
    assert not [p for p in planned(root, tmp_path).to_json()["examination"]["problems"] if p["kind"] == "leak"]
    first = next((root / "train").rglob("*.png"))
    Image.open(first).save(root / "test" / first.parent.name / "copy.png")
    found = planned(root, tmp_path).to_json()
    assert "leak" in {problem["kind"] for problem in found["examination"]["problems"]}
    assert "error: 1 of 7 test pictures is also in train" in plan_text(found)


def _moved(path, split):
    (split / path.parent.name).mkdir()
    return split / path.parent.name / path.name


def test_what_does_not_fit_is_answered_with_flags_that_do(pictures, tmp_path):
    whole = planned(pictures, tmp_path, training__batch_size=16)
    assert whole.fits and whole.status == 0 and whole.choices == ()
    short = planned(pictures, tmp_path, Room(memory=-1), training__batch_size=16)
    assert not short.fits and short.status == 4 and short.choices
    text = plan_text(short.to_json())
    assert all(choice.flag in text for choice in short.choices)
    assert any("training.micro_batch" in choice.flag for choice in short.choices)
    full = planned(pictures, tmp_path, Room(disk=1000))
    assert not full.fits and full.status != 0


def test_memory_that_runs_out_names_a_way_on(pictures, tmp_path, monkeypatch, vitrail_command):
    def starve(self, batch):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(Trainer, "advance", starve)
    refused = vitrail_command("train", pictures, "--out", tmp_path / "run", *tiny.flags())
    assert refused.status == 4 and "error[VT082]" in refused.err and "training.micro_batch" in refused.err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
    with pytest.raises(OutOfMemory):
        tiny.tiny(pictures, tmp_path / "other")


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("shapes differ"), False),
        (OSError("Cannot allocate memory"), True),
    ],
)
def test_shortage_is_told_from_other_faults(error, short):
    assert is_shortage(error) is short


def test_a_run_writes_down_what_it_took(run):
    status = json.loads((run / "status.json").read_text())
    assert status["seconds"] > 0 and status["peak_memory_bytes"] >= status["memory_growth_bytes"] >= 0


def test_the_command_prints_one_object_and_writes_nothing(pictures, tmp_path, vitrail_command, monkeypatch):
    asked = vitrail_command("train", pictures, "--out", tmp_path / "run", "--plan", "--json", *tiny.flags())
    assert asked.status == 0 and not (tmp_path / "run").exists()
    found = json.loads(asked.out)
    assert found["images"].keys() == {"train", "val", "test"} and found["classes"] == 2
    assert sum(part["seconds"] for part in found["parts"]) == pytest.approx(found["seconds"], rel=0.01)
    assert found["disk_bytes"] > found["parameters"] * 4 and found["run"]["training"]["batch_size"] == 8
    shown = vitrail_command("train", pictures, "--out", tmp_path / "run", "--plan", *tiny.flags())
    for words in ("Data", "Model", "Recipe", "Cost", "Beat", "nearest neighbours"):
        assert words in shown.out
    for columns in (80, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = vitrail_command("train", pictures, "--out", tmp_path / "run", "--plan", *tiny.flags())
        assert not [line for line in shown.out.splitlines() if len(line) > columns and str(tmp_path.parent) not in line]


def test_a_finished_run_costs_nothing_more(run, pictures, tmp_path):
    asked = Asked(settings=tiny.SETTINGS)
    assert plan(str(pictures), run, asked, Machine("cpu")).to_json()["state"] == "done"
    assert plan(str(pictures), tmp_path / "run", asked, Machine("cpu")).to_json()["state"] == "new"


def test_weights_to_start_from_are_named(run, pictures, tmp_path):
    found = plan(str(pictures), tmp_path / "run", Asked(weights=str(run)), Machine("cpu"))
    assert str(run) in plan_text(found.to_json()) and found.to_json()["run"]["weights"] == str(run)
