"""The command line as it is typed: what each verb prints, its JSON, its exit status, and that plans write nothing."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import vitrail
from vitrail.checkpoints.loading import read
from vitrail.cli import app, verbs


def files_below(folder):
    return sorted(path for path in folder.rglob("*"))


def type_in(monkeypatch, content, by_hand=False):
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: by_hand)
    monkeypatch.setattr(sys, "stdin", stdin)


@pytest.mark.parametrize("verb", [[], *([name] for name in verbs()), ["data", "fetch"]], ids=" ".join)
def test_every_verb_has_help(vitrail_command, verb):
    answer = vitrail_command(*verb, "--help")
    assert answer.status == 0 and answer.out.startswith("Usage: vitrail " + " ".join(verb)) and answer.err == ""


def test_without_a_verb_the_verbs_are_listed(vitrail_command):
    answer = vitrail_command()
    assert answer.status == 0 and all(re.search(rf"│ {name} ", answer.out) for name in verbs())
    assert vitrail_command("--version").out.strip() == vitrail.__version__


def test_the_demos_plan_writes_nothing(vitrail_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = vitrail_command("demo", "--plan")
    assert answer.status == 0 and answer.err == "" and files_below(tmp_path) == []
    assert "fashion-mini: 10 classes; train 9,000, val 1,000, test 2,000" in answer.out
    assert (
        "runs/demo" in answer.out
        and "majority class      10.0 %" in answer.out
        and "Plan only, nothing written" in answer.out
    )
    assert [line.split()[0] for line in answer.out.splitlines() if line[0] != " "] == [
        "Data", "Model", "Recipe", "Machine", "Cost", "Beat", "Out", "Plan",
    ]  # fmt: skip


def test_a_plan_counts_what_the_run_will_have(vitrail_command, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = vitrail_command("train", pictures, "--plan", "--json", "--seed", 7, *tiny.flags())
    plan = json.loads(answer.out)
    module = vitrail.load(run).module
    assert answer.status == 0 and files_below(tmp_path) == []
    assert plan["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert plan["tokens"] == 16 and plan["steps"] == 12 and plan["images"] == {"train": 32, "val": 4, "test": 4}
    assert plan["majority"] == {"class": "dark below", "share": 0.5} and plan["run"]["training"]["seed"] == 7
    assert plan["training_seconds"] == pytest.approx(12 * plan["seconds_per_step"]) and plan["seconds_per_step"] > 0
    assert re.fullmatch(r"runs/data-vit16x1-\d{4}-\d\d-\d\d", plan["out"])


def train(vitrail_command, pictures, out, *more, **changes):
    return vitrail_command("train", pictures, "--out", out, *tiny.flags(**changes), *more)


def test_train_shows_the_result_beside_its_baselines_and_what_is_next(vitrail_command, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a run"
    answer = train(vitrail_command, pictures, out)
    assert answer.status == 0 and "val/top1" in answer.err
    summary = json.loads((out / "eval" / "test" / "summary.json").read_text())
    for name, value in (("this model", summary["top1"]), *((b["name"], b["top1"]) for b in summary["baselines"])):
        assert re.search(rf"{name} +{100 * value:.1f} % \(95 % CI [\d.]+-[\d.]+\)", answer.out), name
    assert f"where  {out}" in answer.out
    commands = [line.removeprefix("next").strip() for line in answer.out.splitlines()[-3:]]
    picture = next(pictures.rglob("*.png"))
    for command in commands[:2]:  # what it says to type works
        words = shlex.split(command.replace("PICTURE.png", shlex.quote(str(picture))))
        assert words[0] == "vitrail" and vitrail_command(*words[1:]).status == 0


def test_the_same_command_again_is_done_and_another_one_is_refused(vitrail_command, pictures, tmp_path):
    out = tmp_path / "run"
    first = json.loads(train(vitrail_command, pictures, out, "--json").out)
    assert (
        first["already"] is False
        and first["n"] == 4
        and set(first["baselines"]) == {"majority class", "nearest neighbours"}
    )
    before = {path: path.stat().st_mtime_ns for path in files_below(out) if path.is_file() and path.name != ".lock"}
    again = train(vitrail_command, pictures, out, "--workers", 1)  # the number of workers makes no other run
    assert again.status == 0 and again.out.startswith("done already   top-1 on 4 test pictures")
    refused = train(vitrail_command, pictures, out, training__clip=0.5, optimizer__lr=0.3)
    assert refused.status == 2 and refused.err.startswith(f"error[VT021] {out} holds the run of another command")
    assert "optimizer.lr: it was 0.02, you asked 0.3" in refused.err
    assert "training.clip: it was 1.0, you asked 0.5" in refused.err and "--overwrite" in refused.err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    overwritten = train(vitrail_command, pictures, out, "--overwrite", "--json", training__clip=0.5)
    assert overwritten.status == 0 and json.loads(overwritten.out)["already"] is False
    assert json.loads((out / "config.json").read_text())["run"]["training"]["clip"] == 0.5


def test_changed_pictures_are_another_run(vitrail_command, tmp_path):
    data, out = tiny.write_pictures(tmp_path / "data"), tmp_path / "run"
    assert train(vitrail_command, data, out, "-q").status == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "dark below" / "one more.png")
    refused = train(vitrail_command, data, out)
    assert refused.status == 2 and "error[VT021]" in refused.err and "the images: it was" in refused.err
    refused = vitrail_command("eval", out)
    assert refused.status == 3 and "error[VT024]" in refused.err and "--data FOLDER" in refused.err


def test_eval_says_what_the_run_said(vitrail_command, pictures, run, tmp_path):
    told = json.loads((run / "eval" / "test" / "summary.json").read_text())
    written = (run / "eval" / "test" / "predictions.csv").read_bytes()
    answer = vitrail_command("eval", run, "--json")
    found = json.loads(answer.out)
    assert answer.status == 0 and all(found[key] == told[key] for key in ("n", "top1", "top1_interval"))
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-5)  # the packed products sum in another order
    assert {name: b["top1"] for name, b in found["baselines"].items()} == {
        b["name"]: b["top1"] for b in told["baselines"]
    }
    assert (run / "eval" / "test" / "predictions.csv").read_bytes() == written
    text = vitrail_command("eval", run, "--split", "val", "--out", tmp_path).out
    assert text.startswith(f"{pictures}, val: 4 images\n  top-1 ") and "nearest neighbours" in text
    assert (tmp_path / "eval" / "val" / "predictions.csv").is_file()
    assert json.loads((tmp_path / "eval" / "val" / "summary.json").read_text())["n"] == 4


def test_eval_on_other_pictures_matches_classes_by_name(vitrail_command, tmp_path):
    """The data lack the model's middle class; with the names of the others swapped, right answers become wrong ones."""
    shades = ("dark", "middle", "white")
    run, data = tmp_path / "run", tiny.write_pictures(tmp_path / "data", classes=shades)
    assert train(vitrail_command, data, run, "-q", training__epochs=8).status == 0
    top1 = {}
    for name, classes in (("straight", shades), ("swapped", shades[::-1])):
        folder = tiny.write_pictures(tmp_path / name, classes=classes)
        (folder / "middle").rename(tmp_path / f"middle {name}")
        answer = vitrail_command("eval", run, "--data", folder, "--split", "train", "--out", tmp_path, "--json")
        top1[name] = json.loads(answer.out)["top1"]
    assert top1["straight"] > 0.9 and top1["swapped"] < 0.1
    assert (tmp_path / "eval" / "straight-train" / "predictions.csv").is_file()
    other = tiny.write_pictures(tmp_path / "other", classes=("cats", "dark"))
    refused = vitrail_command("eval", run, "--data", other)
    assert refused.status == 3 and "error[VT025] the model does not know the classes cats" in refused.err
    refused = vitrail_command("eval", next((run / "checkpoints").glob("step-*")))
    assert refused.status == 2 and "is no run folder, so it has no data of its own" in refused.err


def test_predict_one_line_per_file_errors_included(vitrail_command, pictures, run, tmp_path, monkeypatch):
    good = sorted((pictures / "light below").iterdir())[:3]
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.png").touch()
    names = [
        good[0],
        tmp_path / "text.jpg",
        good[1],
        tmp_path / "empty.png",
        "nowhere.png",
        tmp_path / "empty",
        good[2],
    ]
    answer = vitrail_command("predict", run, *names)
    lines = [line.split("\t") for line in answer.out.splitlines()]
    assert answer.status == 3 and answer.err == "" and [line[0] for line in lines] == [str(name) for name in names]
    assert [line[1].split()[0] for line in lines] == [
        "light", "error[VT052]", "light", "error[VT051]", "error[VT050]", "error[VT050]", "light",
    ]  # fmt: skip
    assert re.fullmatch(r"0\.\d{3}", lines[0][2])
    answer = vitrail_command("predict", run, *names, "--json", "--top", 2)
    records = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.status == 3 and [record["file"] for record in records] == [str(name) for name in names]
    assert records[1]["error"]["code"] == "VT052" and "label" not in records[1]
    expected = vitrail.load(run).predict(good[0])
    assert records[0]["label"] == expected.label and records[0]["probability"] == pytest.approx(
        expected.probability, abs=1e-6
    )
    assert [each["label"] for each in records[0]["top"]] == ["light below", "dark below"]
    assert vitrail_command("predict", run, good[0], "--top", 2).out.count("below") == 3  # the folder and two classes


def test_predict_reads_folders_patterns_and_standard_input(vitrail_command, pictures, run, tmp_path, monkeypatch):
    folder = pictures / "dark below"
    paths = [str(path) for path in sorted(folder.iterdir())]

    def named(*arguments):
        answer = vitrail_command("predict", run, *arguments)
        assert answer.status == 0
        return [line.split("\t")[0] for line in answer.out.splitlines()]

    assert named(folder) == paths and named(folder / "*.png") == paths and named(folder / "0?.png") == paths[:10]
    assert len(named(pictures)) == 40 and len(named(pictures / "**" / "*.png")) == 40
    type_in(monkeypatch, f"{paths[4]}\n\n {paths[2]} \n".encode())
    assert named("-") == [paths[4], paths[2]]
    type_in(monkeypatch, (folder / "00.png").read_bytes())
    answer = vitrail_command("predict", run)
    assert answer.out.split("\t")[:2] == ["-", "dark below"]
    assert vitrail_command("predict", run, "--jsn", paths[0]).status == 2
    type_in(monkeypatch, b"")
    answer = vitrail_command("predict", run, "-", "--json")
    assert answer.status == 3 and json.loads(answer.out)["error"]["code"] == "VT051"


def test_strange_file_names_stay_on_one_line(vitrail_command, pictures, run, tmp_path):
    picture = next(pictures.rglob("*.png")).read_bytes()
    for name in (b"new\nline.png", b"tab\t.png", b"[bold]red.png", b"caf\xe9.png", "Käse.png".encode()):
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:
            file.write(picture)
    answer = vitrail_command("predict", run, tmp_path)
    assert answer.status == 0 and len(answer.out.splitlines()) == 5
    assert all(line.count("\t") == 2 for line in answer.out.splitlines())
    assert "[bold]red.png" in answer.out and "Käse.png" in answer.out
    records = [json.loads(line) for line in vitrail_command("predict", run, tmp_path, "--json").out.splitlines()]
    assert len(records) == 5 and any("new\nline.png" in record["file"] for record in records)


@pytest.mark.parametrize(("size", "grid"), [(None, (4, 4)), ("64x96", (4, 6))])
def test_fine_tuning_from_official_weights(vitrail_command, parity_path, tmp_path, size, grid):
    """One epoch of the fine-tune recipe from an .npz of the official family, also onto another grid."""
    data = tiny.write_pictures(tmp_path / "data", per_class=12, side=40, channels=3)
    weights = parity_path("a_token_strong.params")
    resized = ["--image-size", size] if size else []
    answer = vitrail_command(
        "train",
        data,
        "--weights",
        weights,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--out",
        tmp_path / "run",
        "--json",
        *resized,
    )
    assert answer.status == 0 and json.loads(answer.out)["n"] == 2
    run = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert run["recipe"] == "fine-tune" and run["weights"] == str(weights)
    assert run["tuning"]["type"] == "lora" and run["optimizer"]["lr"] == 1e-3
    model = vitrail.load(tmp_path / "run")
    assert model.module.config.grid == grid and model.classes == tiny.CLASSES
    started = read(weights).weights
    # The first updates move the zeroed head alone: look at the last state, whichever was the best.
    ended = vitrail.load(tmp_path / "run" / "checkpoints" / "step-3").module.state_dict()
    assert ended.keys() == started.keys()  # merged
    query, key, value = (
        ended["blocks.1.mixer.query_key_value.weight"] - started["blocks.1.mixer.query_key_value.weight"]
    ).chunk(3)
    assert 0 < query.abs().max() < 0.1 and 0 < value.abs().max() < 0.1 and not key.any()  # it started there and moved
    assert torch.equal(ended["blocks.1.mlp.expand.weight"], started["blocks.1.mlp.expand.weight"])


def test_models_are_listed_with_their_cost(vitrail_command):
    text = vitrail_command("models")
    assert text.status == 0 and re.search(r"ViT-B/16 +197 +86,567,656 ", text.out)
    answer = vitrail_command("models", "--image-size", "240x320", "--json")
    listed = {record["name"]: record for record in json.loads(answer.out)}
    assert answer.status == 0 and listed["ViT-B/16"]["tokens"] == 15 * 20 + 1
    assert listed["ViT-B/16"]["parameters"] == 86_567_656 + (15 * 20 - 14 * 14) * 768
    assert "224x320" in listed["ViT-B/32"]["problem"]


def test_doctor(vitrail_command, monkeypatch):
    monkeypatch.setattr("vitrail.commands.information._matrix_speed", lambda kind: 12.0)
    facts = json.loads(vitrail_command("doctor", "--json").out)
    assert facts["cores"] >= 1 and facts["gflops"] == {"float32": 12.0, "bfloat16": 12.0} and "findings" in facts
    answer = vitrail_command("doctor")
    assert answer.status == 0 and f"numpy {np.__version__}" in answer.out and "12 GFLOP/s" in answer.out


def test_the_first_interrupt_of_a_real_process_saves_and_ends_with_130(pictures, tmp_path):
    """Sent to the whole process group, as a terminal does, so that workers get it too."""
    before = signal.getsignal(signal.SIGINT)
    command = [sys.executable, "-m", "vitrail", "train", pictures, "--out", tmp_path / "run", "--workers", "2"]
    settings = tiny.flags(training__epochs=100_000, training__evaluations=10_000)
    process = subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "run").glob("checkpoints/latest")) and process.poll() is None:
        time.sleep(0.05)
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert re.search(r"stopped\[VT081\] stopped at step (\d+) of 400000; everything is saved", said)
    step = int(re.search(r"at step (\d+)", said)[1])
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"step-{step}\n"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before  # this process was not hit


@pytest.mark.parametrize("own", [None, "7"])
def test_threads_do_not_turn_in_place_for_ever(vitrail_command, monkeypatch, own):
    """libgomp reads it once, when PyTorch is imported: a child process sees what a command was started with."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    assert vitrail_command("--version").status == 0
    assert os.environ.pop("GOMP_SPINCOUNT") == (own or "3000")


def test_a_command_that_waits_for_the_keyboard_says_so(run, pictures, vitrail_command, monkeypatch):
    picture = (
        next((pictures / "train").rglob("*.png")) if (pictures / "train").is_dir() else next(pictures.rglob("*.png"))
    )
    type_in(monkeypatch, f"{picture}\n".encode(), by_hand=True)
    answer = vitrail_command("predict", run, "-")
    assert answer.status == 0 and str(picture) in answer.out and "Ctrl-D" in answer.err
    type_in(monkeypatch, f"{picture}\n".encode())
    assert vitrail_command("predict", run, "-").err == ""


@pytest.mark.parametrize("words", [["recipes"], ["models", "inspect", "nowhere", "--json"]])
def test_a_reader_that_goes_away_is_no_error(words):
    """As in `vitrail predict ... | head`, also where there is an error to tell."""
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from vitrail.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 0 and done.stderr == b""


def test_every_verb_is_known_to_these_tests():
    assert set(verbs()) == {
        "bench",
        "export",
        "demo",
        "train",
        "eval",
        "predict",
        "explain",
        "report",
        "compare",
        "models",
        "recipes",
        "convert",
        "doctor",
        "data",
        "embed",
        "search",
        "reproduce",
    }
    assert verbs(app["models"]) == ["inspect"]
    assert verbs(app["data"]) == ["check", "preview", "split", "stylise", "fetch"]
