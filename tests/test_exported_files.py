"""Exported files from anywhere: damaged, foreign, newer or hostile ones end in an error that says so."""

import io
import json
import random
import struct
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper

import exports
import vitrail
from vitrail.deployment import engines, onnx_file, openvino_file
from vitrail.deployment.engines import ENGINES, Setting
from vitrail.deployment.passport import FORMAT, MAX_CLASSES, read_passport, sealed
from vitrail.errors import UsageError, VitrailError


def code(path, **arguments):
    """Of the error that opening and asking the file ends with."""
    with pytest.raises(VitrailError) as caught:
        vitrail.load(path, **arguments).logits(exports.images())
    assert str(path) in caught.value.what or "engine" in caught.value.what
    return caught.value.code


@pytest.fixture
def onnx_path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """model.xml and model.bin."""
    return exports.serialised(exports.network(), tmp_path_factory.mktemp("parts"))


def test_written_files_are_plain_onnx_with_aligned_arrays_and_no_folders(onnx_path):
    content = exports.onnx_bytes()
    onnx_path.write_bytes(content)
    onnx.checker.check_model(str(onnx_path), full_check=True)  # by the library itself
    model = onnx.load(onnx_path)
    for array in model.graph.initializer:
        if len(array.raw_data) >= onnx_file.SMALLEST:
            assert content.index(array.raw_data) % onnx_file.ALIGNED == 0
    assert b"/opt/somebody" in exports.network().SerializeToString()
    assert b"/opt/somebody" not in content
    assert [entry.key for entry in model.metadata_props] == ["vitrail"]
    assert json.loads(model.metadata_props[0].value)["classes"] == list(exports.CLASSES)


def test_large_arrays_are_left_in_the_file(onnx_path):
    onnx_path.write_bytes(exports.onnx_bytes())
    graph = onnx.ModelProto.FromString(onnx_file.read_onnx(onnx_path).graph)
    outside = {
        array.name: array for array in graph.graph.initializer if array.data_location == onnx.TensorProto.EXTERNAL
    }
    assert outside.keys() == {"kernels"}
    said = {entry.key: entry.value for entry in outside["kernels"].external_data}
    content = onnx_path.read_bytes()[int(said["offset"]) :][: int(said["length"])]
    np.testing.assert_array_equal(np.frombuffer(content, np.float32), exports.KERNELS.ravel())
    assert said["location"] == "model.onnx"


def test_a_file_may_be_a_link_and_have_any_name(tmp_path):
    (tmp_path / "inside").mkdir()
    real = tmp_path / "inside" / "Modell Käfer #1.onnx"
    real.write_bytes(exports.onnx_bytes())
    (tmp_path / "link.onnx").symlink_to(real)
    images = exports.images()
    for path in (real, tmp_path / "link.onnx"):
        np.testing.assert_allclose(vitrail.load(path).logits(images), exports.oracle(images), rtol=1e-4, atol=1e-4)


def test_the_zip_is_stored_aligned_and_always_the_same(parts):
    content = openvino_file.stamped(*parts, exports.passport("openvino"))
    assert content == openvino_file.stamped(*parts, exports.passport("openvino"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["model.bin", "model.xml", "passport.json"]
    assert content.index(parts[1]) % openvino_file.ALIGNED == 0


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path, parts, target):
    good = exports.onnx_bytes() if target == "onnx" else openvino_file.stamped(*parts, exports.passport("openvino"))
    path, images, draw = tmp_path / f"model.{target}", exports.images(), random.Random(7)
    path.write_bytes(good)
    truth, kept, codes = vitrail.load(path).logits(images), 0, set()
    # The flips that matter most are where the structure is: the ends of the file.
    places = [*range(8 * len(good) - 1, 8 * len(good) - 2400, -30), *range(0, 1200, 30)]
    for place in [*places, *(draw.randrange(8 * len(good)) for _ in range(150))]:
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            model = vitrail.load(path)
        except VitrailError as error:
            codes.add(error.code)
        else:
            kept += 1
            if kept < 8:
                np.testing.assert_array_equal(model.logits(images), truth)
    assert codes <= {"VT160", "VT161", "VT162", "VT163", "VT164"}
    # In a zip the times, the attributes and the checksums mean nothing, for the seal holds; in ONNX nothing is kept.
    assert kept < 90
    assert target == "openvino" or kept == 0


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_cut_off_files_are_found(tmp_path, parts, target):
    good = exports.onnx_bytes() if target == "onnx" else openvino_file.stamped(*parts, exports.passport("openvino"))
    path = tmp_path / f"model.{target}"
    for length in (0, 1, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert code(path) in {"VT160", "VT164"}
    path.write_bytes(good + b"\x00")
    assert code(path) == "VT160"


def test_versions_hashes_and_passports(onnx_path, tmp_path):
    body = exports.network().SerializeToString()
    onnx_path.write_bytes(exports.sealed_onnx(exports.network()))
    vitrail.load(onnx_path)  # the helper makes good files
    for expected, content in {
        "VT161": exports.sealed_onnx(exports.network(), format=FORMAT + 1, made_by="vitrail 9.0"),
        "VT162": exports.sealed_onnx(exports.network()).replace(exports.KERNELS.tobytes()[:64], bytes(64)),
        "VT164": body,
    }.items():
        onnx_path.write_bytes(content)
        assert code(onnx_path) == expected
    onnx_path.write_bytes(exports.sealed_onnx(exports.network(), target="openvino"))
    assert code(onnx_path) == "VT160"
    assert code(tmp_path / "nothing.onnx") == "VT078"


def external(model):
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def external_inside(model):
    inner = exports.network().graph
    external(onnx.ModelProto(graph=inner))
    inner.initializer[0].external_data.add(key="location", value="../secret")
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))


def external_constant(model):
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    model.graph.node[0].attribute.append(helper.make_attribute("value", tensor))


FOREIGN = {
    "external": external, "external in a branch": external_inside, "external constant": external_constant,
    "domain": lambda model: setattr(model.graph.node[3], "domain", "com.evil"),
    "operator set": lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
    "function": lambda model: model.functions.add(name="f", domain=""),
    "sparse": lambda model: model.graph.sparse_initializer.add(),
    "training": lambda model: model.training_info.add(),
    "overload": lambda model: setattr(model.graph.node[0], "overload", "x"),
}  # fmt: skip


@pytest.mark.parametrize("change", FOREIGN)
@pytest.mark.parametrize("has_passport", [True, False])
def test_foreign_things_are_refused_before_an_engine_sees_them(onnx_path, monkeypatch, change, has_passport):
    model = exports.network()
    FOREIGN[change](model)
    onnx_path.write_bytes(exports.sealed_onnx(model) if has_passport else model.SerializeToString())
    monkeypatch.setattr(engines.Engine, "module", lambda engine: pytest.fail("the engine was loaded"))
    assert code(onnx_path) == "VT163"


def test_other_inputs_and_outputs_are_refused(onnx_path):
    model = exports.network()
    model.graph.output[0].name = model.graph.node[-2].output[0] = model.graph.node[-1].input[0] = "answers"
    onnx_path.write_bytes(exports.sealed_onnx(model))
    assert code(onnx_path) == "VT160"
    assert code(onnx_path, engine="openvino") == "VT160"


def test_names_that_are_no_text_and_other_numbers_of_classes(onnx_path):
    content = exports.network().SerializeToString().replace(b"probabilities", b"probab\xf3\xa0\xa1ties")
    onnx_path.write_bytes(b"".join(onnx_file.stamped(content, exports.passport())))
    assert code(onnx_path, engine="openvino") == "VT160"
    onnx_path.write_bytes(exports.onnx_bytes(classes=("one", "two")))
    with pytest.raises(VitrailError, match="for 2 classes"):
        vitrail.load(onnx_path).logits(exports.images())


def test_nested_and_endless_messages_end(onnx_path):
    deep = exports.network().graph
    for _ in range(15):
        deep = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=deep)], "g", [], [])
    onnx_path.write_bytes(exports.sealed_onnx(helper.make_model(deep)))
    assert code(onnx_path) == "VT160"
    for hostile in (
        b"\xff" * 100,
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x0b" * 50,
        b"\x3a\x05\x0a\xff\x01\x00\x00",
    ):
        onnx_path.write_bytes(hostile)
        assert code(onnx_path) in {"VT160", "VT163"}


def rewritten(parts, change):
    """The zip as it should be, with one thing changed by hand."""
    said = sealed(exports.passport("openvino"), parts).text().encode()
    members = [("model.xml", parts[0]), ("model.bin", parts[1]), ("passport.json", said)]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED) as file:
        for name, content in members[: 2 if change == "missing" else 3]:
            file.writestr(name, content)
        if change == "extra":
            file.writestr("../../evil.so", b"x")
        if change == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                file.writestr("model.bin", b"other weights")
    content = bytearray(target.getvalue())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.bin"))  # of model.bin in the directory
    if change == "huge":
        struct.pack_into("<LL", content, entry + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    if change == "encrypted":
        content[entry + 8] |= 1
    if change == "elsewhere":
        struct.pack_into("<L", content, entry + 42, 0xFFFFFF0)
    if change == "overlap":
        struct.pack_into("<L", content, entry + 42, 0)
    return bytes(content)


@pytest.mark.parametrize(
    "change", ["compressed", "missing", "extra", "twice", "huge", "encrypted", "elsewhere", "overlap"]
)
def test_hostile_zips_are_refused(tmp_path, parts, change):
    path = tmp_path / "model.openvino"
    path.write_bytes(rewritten(parts, None))
    vitrail.load(path)
    path.write_bytes(rewritten(parts, change))
    assert code(path) == "VT160"


def test_layers_of_other_libraries_and_declarations_are_refused(tmp_path, parts):
    xml, weights = parts
    path = tmp_path / "model.openvino"
    for hostile in (
        xml.replace(b'type="ReLU" version="opset1"', b'type="ReLU" version="extension"'),
        xml.replace(b'type="ReLU" version="opset1"', b"type=\"ReLU\" version='extension'"),
        xml.replace(b'<layer id="1"', b'<layer\nid="1"').replace(b'version="opset1"', b'version="evil"'),
        xml.replace(b"<net ", b'<!DOCTYPE net [<!ENTITY a "b">]><net ', 1),
    ):
        assert hostile != xml
        path.write_bytes(openvino_file.stamped(hostile, weights, exports.passport("openvino")))
        assert code(path) in {"VT160", "VT163"}


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["x"] * (MAX_CLASSES + 1)}, {"classes": ["x" * 2000]}, {"classes": "abc"}, {"temperature": 0},
        {"temperature": "hot"}, {"sizes": []}, {"sizes": [[8, 8], [8, 8]]}, {"sizes": [[8, -8]]}, {"sizes": [[9, 9]]},
        {"sizes": [[8]]}, {"precision": "float64"}, {"target": "pickle"}, {"inside": ["softmax", "softmax"]},
        {"inside": ["code"]}, {"hash": ""}, {"hash": "g" * 64}, {"format": True}, {"format": 0}, {"format": "1"},
        {"multi_label": 1}, {"surplus": 1}, {"source": []}, {"source": {"a": [[[[[[[[]]]]]]]]}}, {"check": {"a": [0] * 30000}},
        {"preprocessing": {"mean": [0.5], "std": [0.5], "channels": 2}}, {"preprocessing": None},
    ],
)  # fmt: skip
def test_passports_are_checked(change):
    good = sealed(exports.passport(), [b""])
    assert read_passport(good.text(), "file") == good
    with pytest.raises(VitrailError) as caught:
        read_passport(json.dumps(json.loads(good.text()) | change), "file")
    assert caught.value.code == "VT160"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", "[" * 100_000, '{"format": NaN}', '{"format": 1, "check": {"a": NaN}}', " " * 5_000_000],
)
def test_texts_that_are_no_passports(text):
    with pytest.raises(VitrailError) as caught:
        read_passport(text, "file")
    assert caught.value.code == "VT160"


def test_an_engine_that_is_not_installed_names_its_extra(onnx_path, monkeypatch):
    onnx_path.write_bytes(exports.onnx_bytes())
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    for engine, extra in (("auto", "onnx"), ("onnxruntime", "onnx"), ("openvino", "openvino")):
        with pytest.raises(UsageError, match=rf'pip install "vitrail\[{extra}\]"') as caught:
            vitrail.load(onnx_path, engine=engine)
        assert caught.value.code == "VT165"


def test_auto_takes_the_engine_that_is_there(onnx_path, monkeypatch):
    onnx_path.write_bytes(exports.onnx_bytes())
    real = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert vitrail.load(onnx_path).engine == "openvino"


def test_an_engine_that_cannot_be_loaded_says_why(monkeypatch):
    def broken(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(engines, "import_module", broken)
    with pytest.raises(VitrailError, match="libgomp") as caught:
        ENGINES["openvino"].module()
    assert caught.value.code == "VT166"


def test_without_bfloat16_float32_is_used_and_said_once(capsys, monkeypatch):
    from types import SimpleNamespace

    from vitrail.deployment import engine_openvino

    monkeypatch.setattr(engine_openvino, "_told", False)
    old = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    new = SimpleNamespace(get_property=lambda device, name: ["FP32", "BF16"])
    monkeypatch.setattr(engine_openvino, "_core", new)
    assert engine_openvino._precision("float32", "bfloat16") == "bf16"
    assert engine_openvino._precision("bfloat16", "float32") == "f32"
    assert engine_openvino._precision("float32", "auto") == "f32"
    monkeypatch.setattr(engine_openvino, "_core", old)
    assert [engine_openvino._precision("float32", "bfloat16") for _ in range(3)] == ["f32"] * 3
    assert capsys.readouterr().err.count("no bfloat16") == 1


@pytest.mark.parametrize("change", [{"threads": -1}, {"streams": 5000}, {"precision": "half"}])
def test_settings_are_bounded(change):
    with pytest.raises(UsageError):
        Setting(**change)
