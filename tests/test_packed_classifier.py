"""The classifier answers by a packed copy, sees that weights have changed, and lets the module answer whoever looks inside."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.native import from_native
from vitrail.deployment import answering, packed
from vitrail.deployment.answering import Compiled, Divided, Packed, way_of
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.engines import Setting
from vitrail.deployment.loading import load
from vitrail.deployment.streams import Streams
from vitrail.errors import UsageError
from vitrail.model.ablation import without_heads
from vitrail.model.heads import LinearHead
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def checkpoint():
    torch.manual_seed(0)
    config = ViTConfig(Size(32, 2, 4, 48), LinearPatches((8, 8)), head=LinearHead(3), image_size=(16, 16))
    weights = {name: torch.randn_like(values) * 0.2 for name, values in config.build().state_dict().items()}
    return Checkpoint(config, weights, Preprocessing((16, 16)), ("a", "b", "c"))


def classifier(way=None):
    return Classifier(checkpoint(), "cpu", way)


def apart(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture
def packings(monkeypatch):
    """How often weights were packed."""
    if not packed.can_pack(nn.Linear(1, 1)):
        pytest.skip("this PyTorch has no oneDNN, and takes the plain way always")
    made = []
    monkeypatch.setattr(answering, "packed", lambda *given: made.append(given[1]) or packed.packed(*given))
    return made


def test_answers_are_the_modules_own_and_weights_are_packed_once(packings):
    quick, plain = classifier(Packed()), classifier()
    for _ in range(2):
        assert apart(quick.logits(IMAGES), plain.logits(IMAGES)) < 1e-5
        assert apart(quick.represent(IMAGES), plain.represent(IMAGES)) < 1e-5
    assert packings == ["float32"]
    logits, gradient = quick.gradients(IMAGES, np.eye(3)[[0, 1, 2, 0, 1]])
    assert apart(logits, plain.logits(IMAGES)) < 1e-6 and np.abs(gradient).max() > 0
    kept = np.array([[0, 1]] * 5)
    assert np.array_equal(quick.logits_of_patches(IMAGES, kept), plain.logits_of_patches(IMAGES, kept))


def changed_in_place(module):
    with torch.no_grad():
        module.head.linear.weight.mul_(-2)


def replaced(module):
    module.head.linear.weight = nn.Parameter(-2 * module.head.linear.weight.detach())


def loaded(module):
    module.load_state_dict({name: 0.5 * values for name, values in module.state_dict().items()})


def new_data(module):
    module.blocks[0].mlp.expand.weight.data = -module.blocks[0].mlp.expand.weight.data


@pytest.mark.parametrize("change", [changed_in_place, replaced, loaded, new_data])
def test_changed_weights_do_not_go_unseen(change, packings):
    quick = classifier(Packed())
    before = quick.logits(IMAGES)
    change(quick.module)
    with torch.inference_mode():
        expected = quick.module(quick.preprocessing.normalise(torch.from_numpy(IMAGES))).numpy()
    assert apart(before, expected) > 0.01
    assert apart(quick.logits(IMAGES), expected) < 1e-5
    assert len(packings) == 2


def test_whoever_looks_inside_is_answered_by_the_module(packings):
    quick = classifier(Packed())
    plain, seen = quick.logits(IMAGES), []
    with quick.module.capture("attention", layers=[-1]) as tape:
        assert apart(quick.logits(IMAGES), plain) < 1e-5
    assert len(tape) == 1
    hook = quick.module.blocks[0].register_forward_hook(lambda *given: seen.append(given))
    quick.logits(IMAGES)
    hook.remove()
    assert len(seen) == 1
    with without_heads(quick.module, {0: [1], 1: [2]}):
        gated = quick.logits(IMAGES)
    assert apart(gated, plain) > 1e-3
    quick.logits(IMAGES)
    assert len(seen) == 1 and packings == ["float32"]


def test_streams_answer_in_order_and_leave_the_program_its_threads():
    before = torch.get_num_threads()
    streams, names = Streams(3), set()

    def answer(images):
        names.add((threading.current_thread().name, torch.get_num_threads()))
        assert torch.is_inference_mode_enabled()
        return images.flatten(1) * 2

    images = torch.arange(14.0).view(7, 2, 1, 1)
    assert torch.equal(streams.map(answer, images), images.flatten(1) * 2)
    assert {threads for _, threads in names} == {1} and torch.get_num_threads() == before


@pytest.mark.parametrize(("count", "shares"), [(1, [1]), (2, [1, 1]), (3, [3]), (4, [2, 2]), (9, [5, 4]), (0, [0])])
def test_how_a_batch_is_divided(count, shares):
    asked = []

    class Model:
        def forward(self, images):
            asked.append(len(images))
            return images

    Divided(Model(), Streams(2)).forward(torch.zeros(count, 1))
    assert sorted(asked, reverse=True) == shares


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_several_streams_of_a_model(packings, two_threads):
    quick, plain = classifier(Packed(streams=2)), classifier()
    assert apart(quick.logits(IMAGES[:4]), plain.logits(IMAGES[:4])) < 1e-5
    assert isinstance(quick._answerer(), Divided)


def test_a_batch_is_divided_only_where_each_stream_has_work_enough(packings, two_threads, monkeypatch):
    """Unless so many streams are asked for; beginning one takes as long as many small images."""
    began = []
    divided = Streams.map
    monkeypatch.setattr(
        Streams, "map", lambda self, answer, images: began.append(len(images)) or divided(self, answer, images)
    )
    chosen, asked = classifier(Packed()), classifier(Packed(streams=2))
    monkeypatch.setattr(answering, "SHARE", 2.5 * 2 * chosen.module.config.work.products)  # the work of 2.5 images
    for count in (1, 2, 4, 6):
        chosen.logits(IMAGES[:1].repeat(count, axis=0))
    assert began == [6]
    asked.logits(IMAGES[:2])
    assert began == [6, 2]


@pytest.mark.parametrize("way", [Packed(threads=1), Packed(streams=2, threads=2)])
def test_an_answer_with_threads_of_its_own(two_threads, monkeypatch, way):
    """The program has two, and three after it asked for them; who answers has its own, and never changes the program's."""
    found = []
    monkeypatch.setattr(answering, "packed", lambda backbone, precision: Told(backbone, found))
    quick, plain = classifier(way), classifier()
    for own in (2, 3):
        torch.set_num_threads(own)
        quick._watched._made = None
        assert apart(quick.logits(IMAGES[:1]), plain.logits(IMAGES[:1])) < 1e-5 and torch.get_num_threads() == own
    assert found == [way.threads] * 2


class Told:
    """A model that writes down how many threads it has."""

    def __init__(self, backbone, found):
        self.backbone, self.found = backbone, found

    def forward(self, images):
        self.found.append(torch.get_num_threads())
        return self.backbone(images)


def test_threads_stay_within_a_containers_cores(two_threads, monkeypatch):
    found = []
    monkeypatch.setattr(answering, "packed", lambda backbone, precision: Told(backbone, found))
    monkeypatch.setattr(answering, "threads", lambda own: 1)
    classifier(Packed()).logits(IMAGES[:1])
    assert found == [1] and torch.get_num_threads() == 2


def test_loading_chooses_the_way_by_precision_and_device(tmp_path, packings):
    from_native(checkpoint(), tmp_path / "model")
    plain = classifier().logits(IMAGES)
    assert apart(load(tmp_path / "model").logits(IMAGES), plain) < 1e-5
    answering._multiplies_bfloat16.cache_clear()
    half = load(tmp_path / "model", engine="pytorch", precision="bfloat16").logits(IMAGES)
    assert packings[0] == "float32" and apart(half, plain) < 0.05
    with pytest.raises(UsageError) as told:
        load(tmp_path / "model", engine="pytorch", precision="int8")
    assert told.value.code == "VT169"
    with pytest.raises(UsageError) as told:
        way_of("pytorch", Setting("bfloat16"), "cuda")
    assert told.value.code == "VT169"
    assert way_of("pytorch", Setting(), "cuda") is None


def test_a_processor_without_bfloat16_is_told_of_once(monkeypatch, capsys):
    answering._multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert way_of("pytorch", Setting("bfloat16"), "cpu") == way_of("pytorch", Setting("bfloat16"), "cpu") == Packed()
    assert capsys.readouterr().err.count("no bfloat16") == 1
    answering._multiplies_bfloat16.cache_clear()


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(answering.shutil, "which", lambda name: None)
    with pytest.raises(UsageError) as told:
        classifier(Compiled()).logits(IMAGES)
    assert told.value.code == "VT175"


UNHOOKED = """
import sys, numpy, vitrail
images = numpy.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=numpy.uint8)
plain = vitrail.load(sys.argv[1])
for precision, bound in (("float32", 1e-5), ("bfloat16", 0.05)):
    quick = vitrail.load(sys.argv[1], engine="compiled", precision=precision)
    for way in ("logits", "represent"):
        found, expected = (getattr(model, way)(images) for model in (quick, plain))
        assert abs(found - expected).max() < bound * abs(expected).max(), (precision, way)
"""


@pytest.mark.slow
def test_a_compiled_model_answers_as_the_plain_one(tmp_path):
    """In a process of its own: the compiler cannot follow the checks of shapes that the tests put around the model."""
    if not answering.shutil.which("g++"):
        pytest.skip("no g++: torch.compile cannot build its kernels")
    from_native(checkpoint(), tmp_path / "model")
    subprocess.run([sys.executable, "-c", UNHOOKED, str(tmp_path / "model")], check=True)
