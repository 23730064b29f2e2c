"""Exported models answer as their network does, in every engine, without torch."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exports
import vitrail
from vitrail.deployment.engines import Setting
from vitrail.deployment.exported import FEW, MANY
from vitrail.errors import UsageError, VitrailError

WAYS = [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    (folder / "model.onnx").write_bytes(exports.onnx_bytes())
    (folder / "model.openvino").write_bytes(exports.openvino_bytes(folder))
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("target", "engine"), WAYS)
@pytest.mark.parametrize("purpose", ["first-answer", "throughput"])
def test_every_engine_computes_the_network(files, target, engine, purpose):
    for size in exports.SIZES:
        setting = Setting(threads=2, streams=2, purpose=purpose)
        model = vitrail.load(files / f"model.{target}", image_size=size, engine=engine, setting=setting)
        assert model.preprocessing.image_size == size
        for count in (1, 2, 5):
            images = exports.images(count, size)
            np.testing.assert_allclose(model.logits(images), exports.oracle(images), rtol=1e-4, atol=1e-4)


def test_auto_takes_the_files_own_engine(files):
    assert vitrail.load(files / "model.onnx").engine == "onnxruntime"
    assert vitrail.load(files / "model.openvino").engine == "openvino"
    assert vitrail.load(files / "model.onnx", precision="bfloat16").engine == "openvino"  # ONNX Runtime has none


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_is_replaced_under_a_program_changes_no_answer(files, tmp_path, capsys, engine, change):
    """The runtime would read the new file's weights into the old graph, when many pictures open it again."""
    path, images = tmp_path / "live.onnx", exports.images(FEW + 1)
    shutil.copy(files / "model.onnx", path)
    model, late = vitrail.load(path, engine=engine), vitrail.load(path, engine=engine)
    before = model.logits(images[:1])
    if change == "replaced":
        (tmp_path / "new").write_bytes(exports.onnx_bytes(exports.network(scale=-1.0)))
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    for _ in range(2):
        np.testing.assert_allclose(model.logits(images), exports.oracle(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.logits(images[:1]), before, rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().err.count("was replaced") == 1
    with pytest.raises(VitrailError) as caught:  # which was loaded, and not opened by the runtime so far
        late.logits(images)
    assert caught.value.code in ("VT176", "VT160")


SIGNALLED = """
import os, signal, sys
import exports, vitrail

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("heard"))
models = [vitrail.load(path, engine="openvino") for path in sys.argv[1:]]
for model in models:
    model.logits(exports.images(2))
del model, models[0]  # the first one first
models.clear()
os.kill(os.getpid(), signal.SIGTERM)
print(*heard)
"""


def test_a_program_that_changes_its_models_hears_signals(files):
    """A segmentation fault where each model had an openvino.Core."""
    paths = [str(files / "model.onnx"), str(files / "model.openvino")]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *paths], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["heard"]), done.stderr


def test_a_model_says_what_it_computed_in(files, monkeypatch, capsys):
    """On a processor without bfloat16 OpenVINO is told float32."""
    monkeypatch.setattr("vitrail.deployment.engine_openvino.has_bfloat16", lambda: False)
    model = vitrail.load(files / "model.openvino", precision="bfloat16")
    images = exports.images(1)
    np.testing.assert_allclose(model.logits(images), exports.oracle(images), rtol=1e-4, atol=1e-4)
    assert model.precision == "float32"


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_prediction_is_the_calibrated_softmax_of_its_picture(files, picture, target):
    model = vitrail.load(files / f"model.{target}")
    pixels = np.asarray(Image.open(picture)).transpose(2, 0, 1)[None]
    powers = np.exp(exports.oracle(pixels)[0] / 2.0)
    answer = model.predict(picture)
    assert answer.label == exports.CLASSES[powers.argmax()]
    np.testing.assert_allclose(answer.probability, powers.max() / powers.sum(), rtol=1e-5)
    assert [other.label for other in model.predict([picture] * 3)] == [answer.label] * 3


def test_normalisation_may_stand_outside(tmp_path):
    (tmp_path / "model.onnx").write_bytes(exports.onnx_bytes(exports.network(normalised=True), inside=("softmax",)))
    images = exports.images()
    found = vitrail.load(tmp_path / "model.onnx").logits(images)
    np.testing.assert_allclose(found, exports.oracle(images), rtol=1e-4, atol=1e-4)


def test_many_pictures_open_the_engine_for_throughput_once(files):
    model, opened = vitrail.load(files / "model.onnx"), []
    real = model._open
    model._open = lambda setting: (opened.append(setting.purpose), real(setting))[1]
    one, several = exports.images(1), exports.images(FEW + 1)
    first = model.logits(one)
    assert opened == ["first-answer"]
    model.logits(several)
    np.testing.assert_allclose(model.logits(one), first, rtol=1e-5, atol=1e-5)
    assert opened == ["first-answer", "throughput"]
    slowly = vitrail.load(files / "model.onnx")
    real_slow, opened[:] = slowly._open, []
    slowly._open = lambda setting: (opened.append(setting.purpose), real_slow(setting))[1]
    for _ in range(MANY + 2):
        slowly.logits(one)
    assert opened == ["first-answer", "throughput"]


@pytest.mark.parametrize(("target", "engine"), WAYS)
def test_threads_may_share_a_model(files, target, engine):
    model = vitrail.load(files / f"model.{target}", engine=engine)
    batches = [exports.images(count) for count in (1, 2, 3, 4, 5, 6) * 5]
    with ThreadPoolExecutor(4) as pool:
        for images, found in zip(batches, pool.map(model.logits, batches), strict=True):
            np.testing.assert_allclose(found, exports.oracle(images), rtol=1e-4, atol=1e-4)


HIDDEN = "import sys; sys.modules['torch'] = None; from vitrail.cli import main; main(sys.argv[1:])"
SEEN = """
import sys, vitrail
answer = vitrail.load(sys.argv[1]).predict(sys.argv[2])
heavy = {"torch", "onnx", "matplotlib", "scipy", "rich", "transformers", "openvino_telemetry"} & {*sys.modules}
print(answer.label, sorted(name for name in heavy if sys.modules[name] is not None))
"""


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_deployed_path_needs_no_torch(files, picture, target):
    model = files / f"model.{target}"
    label = vitrail.load(model).predict(picture).label
    command = [sys.executable, "-c", HIDDEN, "predict", model, picture, "--json"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["label"] == label
    loaded = subprocess.run([sys.executable, "-c", SEEN, model, picture], capture_output=True, text=True, check=True)
    assert loaded.stdout == f"{label} []\n"


NOTHING_SENT = """
import socket, sys, urllib.request
def refuse(*arguments, **named):
    raise SystemExit("something was sent")
socket.socket.connect = socket.create_connection = urllib.request.urlopen = refuse
import vitrail
vitrail.load(sys.argv[1]).predict(sys.argv[2])
import openvino
openvino.convert_model(sys.argv[3])
if sys.argv[4] == "nncf":
    from nncf.telemetry import telemetry
    assert type(telemetry).__name__ != "NNCFTelemetry", "nncf would send"
print(sys.modules["openvino_telemetry"])
"""


@pytest.mark.parametrize("library", ["openvino", pytest.param("nncf", marks=pytest.mark.slow)])  # 8 s to import
def test_libraries_send_nothing(library, files, picture, tmp_path, monkeypatch):
    # Outside pytest, in whose presence nncf itself is silent; a home of its own would hold the identity that is sent along.
    import onnx

    plain, home = tmp_path / "plain.onnx", tmp_path / "home"
    home.mkdir()
    onnx.save(exports.network(), plain)
    monkeypatch.setenv("HOME", str(home))
    command = [sys.executable, "-W", "ignore", "-c", NOTHING_SENT, files / "model.openvino", picture, plain, library]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout.splitlines()[-1:]) == (0, ["None"]), found.stderr
    assert not (home / "intel").exists()


def test_evaluation_works_and_attacks_refuse(files, tmp_path, vitrail_command):
    for number, name in enumerate(exports.CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(10 * number + index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    arguments = ["eval", files / "model.onnx", "--data", tmp_path / "data", "--split", "train", "--json"]
    found = vitrail_command(*arguments)
    assert found.status == 0, found.err
    assert json.loads(found.out)["n"] == 10
    attacked = vitrail_command(*arguments, "--protocol", "robustness", "--set", "parts=attacks")
    assert attacked.status != 0
    assert "gradient" in attacked.err


@pytest.mark.parametrize("change", ["nan", "inf"])
def test_answers_that_are_no_numbers_are_told(tmp_path, change):
    (tmp_path / "model.onnx").write_bytes(exports.onnx_bytes(exports.network(scale=float(change))))
    with pytest.raises(VitrailError, match="not finite") as caught:
        vitrail.load(tmp_path / "model.onnx").logits(exports.images())
    assert caught.value.code == "VT044"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_that_fails_to_answer_is_told(files, engine):
    """Such as for want of memory; the engines' own errors are of no class that a program could wait for."""
    model = vitrail.load(files / "model.onnx", engine=engine)
    session = model.session(1)
    with pytest.raises(VitrailError, match=f"{engine} gave no answer to images of shape 2x5x8x8, uint8") as caught:
        session.run(np.zeros((2, 5, 8, 8), np.uint8))
    assert caught.value.code == "VT183" and "another engine" in caught.value.fix
    assert session.run(exports.images(1)).shape[0] == 1  # and goes on


@pytest.mark.parametrize(
    ("code", "says", "attempt"),
    [
        ("VT170", "logits alone", lambda model, path: model.represent(exports.images())),
        ("VT171", "batch 3 8 8", lambda model, path: model.logits(exports.images(1, (12, 16)))),
        ("VT171", "float32", lambda model, path: model.logits(exports.images().astype(np.float32))),
        ("VT172", "holds: 8x8, 12x16", lambda model, path: vitrail.load(path, image_size=(10, 10))),
        ("VT173", "cuda", lambda model, path: vitrail.load(path, device="cuda")),
        ("VT046", "no family", lambda model, path: vitrail.load(path, family="dino")),
        ("VT167", "did you mean onnxruntime", lambda model, path: vitrail.load(path, engine="onxruntime")),
        ("VT168", "onnxruntime or openvino", lambda model, path: vitrail.load(path, engine="pytorch")),
        ("VT169", "this model is of float32", lambda model, path: vitrail.load(path, precision="int8").session(1)),
        ("VT002", "float23", lambda model, path: vitrail.load(path, precision="float23")),
        ("VT174", "features, gradients", lambda model, path: vitrail.embed(path, [path], "out.npy")),
    ],
)
def test_what_an_exported_model_cannot_do_is_said(files, code, says, attempt):
    model = vitrail.load(files / "model.onnx")
    with pytest.raises(UsageError) as caught:
        attempt(model, files / "model.onnx")
    assert caught.value.code == code
    assert says in str(caught.value)
