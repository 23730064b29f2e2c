"""The file of winners is a hint: bounded, versioned, and nothing that is wrong with it stops anybody."""

import json

import pytest

from vitrail.deployment import machine
from vitrail.deployment.engines import Setting
from vitrail.deployment.machine import Choice

FIRST, MANY = "first-answer", "throughput"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_told", set())
    return tmp_path / "cache" / "vitrail" / "bench.json"


def choice(engine="pytorch", precision="float32", value=10.0, streams=1, **changes):
    return Choice(engine, precision, 0, streams, 8, value, changes.get("version", machine.version(engine)), 1.0)


def test_what_is_remembered_is_found_again(here):
    ways = [choice(precision="bfloat16", value=20.0), choice(value=12.0), choice("openvino", value=11.0)]
    assert machine.remember("m", {FIRST: ways[2:], MANY: ways}) == here
    assert machine.choices("m", MANY, "float32") == tuple(ways[1:])
    assert machine.choices("m", MANY, "bfloat16") == (ways[0],) and machine.choices("m", MANY, "int8") == ()
    assert machine.choices("other", MANY, "float32") == ()
    machine.remember("m", {MANY: [choice(value=5.0)]})
    assert machine.choices("m", MANY, "float32") == (choice(value=5.0),) and not machine.choices("m", FIRST, "float32")


def test_another_machine_and_another_version_know_nothing(here, monkeypatch):
    machine.remember("m", {MANY: [choice(version="0.1"), choice(value=3.0)]})
    assert machine.choices("m", MANY, "float32") == (choice(value=3.0),)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(machine, "_processor", lambda: ["model name : another"])
        assert machine.choices("m", MANY, "float32") == ()
        machine.remember("m", {MANY: [choice(value=7.0)]})
    assert machine.choices("m", MANY, "float32") == (choice(value=3.0),)  # the first machine's is still there


def test_what_is_advised(here):
    """The engine by purpose, a first answer where none is said; threads and streams where they are left open."""
    first, many = [choice(streams=2), choice("openvino")], [choice("openvino", streams=4), choice(streams=3)]
    machine.remember("m", {FIRST: first, MANY: many})
    both = ("openvino", "pytorch")
    assert machine.engine_for("m", Setting(), "float32", both) == "pytorch"
    assert machine.engine_for("m", Setting(purpose=MANY), "float32", both) == "openvino"
    assert machine.engine_for("m", Setting(), "float32", ("openvino",)) == "openvino"
    assert machine.engine_for("m", Setting(), "float32", ("onnxruntime",)) is None
    assert machine.engine_for("m", Setting(), "bfloat16", both) is None
    assert machine.advised("m", "pytorch", Setting(), "float32").streams == 3
    assert machine.advised("m", "pytorch", Setting(purpose=FIRST), "float32").streams == 2
    assert machine.advised("m", "openvino", Setting(purpose=MANY), "float32") == Setting(streams=4, purpose=MANY)
    for fixed in (Setting(streams=7), Setting(threads=1)):
        assert machine.advised("m", "openvino", fixed, "float32") == fixed
    assert machine.advised("other", "openvino", Setting(), "float32") == Setting()


def test_load_takes_the_advice(here, run):
    """Weights keep to PyTorch and float32, with the streams that were measured."""
    import vitrail
    from vitrail import configuration
    from vitrail.model.families import AXES

    model = vitrail.load(run)
    key = machine.key_of_weights(configuration.encode(model.checkpoint.config, AXES), model.preprocessing.image_size)
    machine.remember(key, {MANY: [choice("openvino", streams=4), choice(streams=3), choice(precision="bfloat16")]})
    ways = [
        load(run)._watched._way for load in (vitrail.load, lambda path: vitrail.load(path, setting=Setting(streams=2)))
    ]
    assert [way.streams for way in (model._watched._way, *ways)] == [0, 3, 2]


def test_the_oldest_models_are_forgotten(here, monkeypatch):
    monkeypatch.setattr(machine, "MAX_MODELS", 3)
    for number in range(5):
        machine.remember(f"m{number}", {MANY: [choice(value=float(number))] * 50})
    known = json.loads(here.read_text())["machines"][machine.machine()]
    assert list(known) == ["m2", "m3", "m4"] and len(known["m4"][MANY]) == machine.MAX_CHOICES


ROW = {"engine": "pytorch", "precision": "float32", "threads": 0, "streams": 0, "batch": 1, "value": 1.0,
       "version": "1", "agreement": 1.0}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 2, "machines": {}}', b'{"format": "1", "machines": {}}',
        b'{"format": 1, "machines": []}', b'{"format": 1, "machines": {"HERE": []}}', b"\xff\xfe", b"[" * 100_000,
        b'{"format": 1, "machines": {"HERE": {"m": 3}}}', b" " * (machine.MAX_BYTES + 1),
    ],
    ids=range(13),
)  # fmt: skip
def test_a_damaged_file_is_passed_over_and_said_so(here, capsys, content):
    here.parent.mkdir(parents=True)
    here.write_bytes(content.replace(b"HERE", machine.machine().encode()))
    assert machine.choices("m", MANY, "float32") == () and machine.choices("m", MANY, "float32") == ()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(here) in said  # once
    machine.remember("m", {MANY: [choice()]})
    assert machine.choices("m", MANY, "float32") == (choice(),)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "nosuch"}, {"precision": "auto"}, {"precision": []}, {"threads": -1}, {"streams": 10**9},
        {"value": float("nan")}, {"batch": "1"}, {"more": 1}, {"agreement": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_passed_over(here, capsys, change):
    machine.remember("m", {MANY: [choice()]})
    data = json.loads(here.read_text())
    data["machines"][machine.machine()]["m"][MANY].insert(0, {**ROW, **change})
    here.write_text(json.dumps(data))
    assert machine.choices("m", MANY, "float32") == (choice(),)
    assert "passed over" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said(here, monkeypatch):
    from vitrail.errors import VitrailError

    here.parents[1].mkdir()
    here.parent.write_text("a file where the folder should be")
    with pytest.raises(VitrailError, match=r"bench\.json"):
        machine.remember("m", {MANY: [choice()]})
    assert machine.choices("m", MANY, "float32") == ()


def test_the_place(monkeypatch, tmp_path):
    """$XDG_CACHE_HOME, which has to be absolute, or else ~/.cache (XDG Base Directory Specification)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert machine.place() == tmp_path / ".cache" / "vitrail" / "bench.json"
