"""What a person reads in a terminal: lines that fit it, hints for what was mistyped, the decisive line first."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

import tiny
from test_compare import CLASSES, write_run
from vitrail.errors import nearest, nearest_path
from vitrail.inspection import explanation


@pytest.mark.parametrize("columns", [80, 60])
def test_every_verb_keeps_to_the_terminal(columns, vitrail_command, pictures, run, tmp_path, monkeypatch):
    """Lines are longer only where a path or a command, which must stay whole, is."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "data")
    shutil.copy(next(pictures.rglob("*.png")), "data/light below/copy.png")
    a, b = (write_run(tmp_path / name, [True] * 30 + [name == "a"] * 30) for name in "ab")
    a, b = a.rename("a run"), b.rename("b run")
    verbs = {
        "plan": ("train", "data", "--out", "new", "--plan", *tiny.flags()),
        "check": ("data", "check", "data"), "compare": ("compare", a.relative_to("."), b.relative_to(".")),
        "explain": ("explain", run, next((tmp_path / "data").rglob("*.png")).relative_to(tmp_path)),
    }  # fmt: skip
    longest = {}
    for name, arguments in verbs.items():
        done = vitrail_command(*arguments)
        lines = [line for line in done.out.splitlines() if "vitrail data" not in line]
        longest[name] = max(map(len, lines))
        assert done.status in (0, 3) and len(lines) > 10, done.err
    assert max(longest.values()) <= columns and min(longest.values()) > columns - 25, longest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("report plantd", "did you mean planted?"),
        ("compare plantd planted", "did you mean planted?"),
        ("train dat", "did you mean data?"),
        ("explain planted/x.pn x.pn", "did you mean x.png?"),
        ("train data --epochs five", "expected: a number, such as 40"),
        ("train data --workers five", "expected: a whole number, such as 2"),
        ("compare planted", "lacks B: the other run folder"),
        ("train data --epochs", "a value after --epochs"),
    ],
)
def test_what_was_mistyped_gets_a_hint(vitrail_command, run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "planted")
    (tmp_path / "data").mkdir()
    (tmp_path / "x.png").write_bytes(b"x")
    words = arguments.replace("planted/x.pn", "planted").split()
    done = vitrail_command(*words)
    assert done.status in (2, 3) and said in done.err and "convert" not in done.err


def test_hints_name_what_is_near_and_nothing_else(tmp_path):
    assert nearest("--epoch", ["--epochs", "--recipe", "--device"]) == "did you mean --epochs?"
    assert nearest("abcx", ["abcd", "abce"]) == "did you mean abcd or abce?"
    (tmp_path / "planted").mkdir()
    assert nearest_path(tmp_path / "plantd") == f"did you mean {tmp_path}/planted?"
    assert nearest_path(tmp_path / "zebra") == "" and nearest_path("/nowhere/at/all") == ""


def test_help_says_what_the_arguments_are(vitrail_command):
    text = " ".join(vitrail_command("compare", "--help").out.replace("│", " ").split())
    assert "A A run folder" in text and "B The other run folder" in text


def test_runs_on_other_pictures_get_commands_that_compare_them(tmp_path, vitrail_command):
    for name in "ab":
        write_run(tmp_path / name, [True] * 3, files=[f"{name}{i}" for i in range(3)], data={"source": f"zoo-{name}"})
        (tmp_path / name / "command.txt").write_text(f"vitrail train zoo-{name} --out {name}\ncd /pictures\n")
    a, b = tmp_path / "a", tmp_path / "b"
    said = json.loads(vitrail_command("compare", a, b, "--json").out)["error"]["fix"]
    assert said == (
        f"vitrail eval {a} --data /pictures/zoo-a --split test && vitrail eval {b} --data /pictures/zoo-a --split test && "
        f"vitrail compare {a} {b} --split zoo-a-test"
    )
    for name in "ab":  # what these write
        write_run(tmp_path / "there" / name, [True] * 3, split="zoo-a-test")
        (tmp_path / "there" / name / "eval" / "zoo-a-test").rename(tmp_path / name / "eval" / "zoo-a-test")
    assert vitrail_command("compare", a, b, "--split", "zoo-a-test").status == 0


def test_classes_that_do_not_differ_are_no_rows(tmp_path, vitrail_command):
    even = [write_run(tmp_path / name, [row % 9 != shift for row in range(90)]) for name, shift in (("a", 0), ("b", 3))]
    text = vitrail_command("compare", *even).out
    assert "0 of 3 differ beyond chance" in text and not [
        name for name in CLASSES if f"{name} " in text.split("lost")[0]
    ]
    far = [write_run(tmp_path / name, [name == "c"] * 90) for name in "cd"]
    rows = vitrail_command("compare", *far).out.split("lost")[0]
    assert "3 of 3 differ beyond chance" in rows and all(f"{name} " in rows for name in CLASSES)


def test_a_map_without_a_shape_says_so_at_once(run, pictures, tmp_path, vitrail_command, monkeypatch):
    """Right after the prediction, and in the picture's own line of words; a map with a shape says nothing of the kind."""
    captions = []
    monkeypatch.setattr(
        "vitrail.commands.inspection.figure",
        lambda picture, weights, box, title, caption, marked, panel: captions.append(caption) or picture,
    )
    picture = next(pictures.rglob("*.png"))
    made = explanation.rollout

    def weights(first):
        def gaze(*arguments):
            found = made(*arguments)
            even = torch.ones_like(found.weights)
            even[:, 0] = first
            return replace(found, weights=even / even.sum())

        monkeypatch.setattr(explanation, "rollout", gaze)

    said = {}
    for first in (1.0, 500.0):
        weights(first)
        done = vitrail_command("explain", run, picture, "--out", tmp_path / "explained.png")
        assert done.status == 0, done.err
        said[first] = done.out.splitlines()
    assert said[1.0][1].startswith("beware      This map is nearly even") and captions[0].startswith("Nearly even")
    assert "nearly even" not in " ".join(said[1.0][3:])  # once
    assert said[500.0][1].startswith("method") and "even:" not in captions[1]


def test_a_request_to_stop_that_a_library_swallows_stops_all_the_same(monkeypatch, capsys):
    """safetensors turned the exception of SIGTERM into a ValueError, once in some 300 stops."""
    from vitrail import cli, errors

    def swallowing(arguments):
        with contextlib.suppress(KeyboardInterrupt):
            errors.request_to_stop(15, None)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(errors, "requests", [])
    monkeypatch.setattr(cli, "requests", errors.requests)
    assert cli._guarded(swallowing, []) == 130 and "stopped" in capsys.readouterr().err
    errors.requests.clear()
    with pytest.raises(ValueError, match="no request"):
        cli._guarded(lambda arguments: (_ for _ in ()).throw(ValueError("no request")), [])
