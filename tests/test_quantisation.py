"""int8: which layers suffer, which are spared, and that an accuracy budget holds or is refused."""

import numpy as np
import pytest

from vitrail.deployment.sensitivity import (
    Drop,
    HeldOut,
    Judge,
    Sensitivity,
    agreement,
    cheapest,
    error,
    mix,
    sensitivities,
)
from vitrail.errors import DataError, UsageError, VitrailError

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")
CLASSES, TOKENS, DIM = 4, 4, 8


def graph(shares=(200.0, 1.0, 1.0, 1.0), seed=0):
    """Tokens of 8 numbers; the first is large in `planted` and read by nobody afterwards; then two more layers."""
    from openvino import opset13 as op

    random = np.random.default_rng(seed)

    def linear(values, rows, name):
        weights = op.constant(random.standard_normal((rows, DIM)).astype(np.float32))
        return op.matmul(values, weights, False, True, name=name)

    def numbers(*values):
        return op.constant(np.array(values, dtype=np.int64))

    images = op.parameter([-1, 1, TOKENS, DIM], np.uint8, name="images")
    images.output(0).get_tensor().set_names({"images"})
    values = op.divide(op.subtract(op.convert(images, "f32"), np.float32(127.5)), np.float32(127.5))
    tokens = op.reshape(values, numbers(0, TOKENS, DIM), special_zero=True)
    tokens = op.multiply(tokens, op.constant(np.array(shares, dtype=np.float32).reshape(1, TOKENS, 1)))
    hidden = linear(tokens, DIM, "planted")
    read = op.slice(hidden, numbers(1), numbers(TOKENS), numbers(1), numbers(1))
    hidden = op.tanh(linear(op.tanh(op.reduce_mean(read, numbers(1))), DIM, "middle"))
    logits = linear(hidden, CLASSES, "head")
    logits.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([logits], [images])


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, TOKENS, DIM), dtype=np.uint8)


def answers(model, images, hint="f32"):
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return compiled(images)[0].copy()


def labelled(model, count, seed):
    """The float32 model's own answers as truth, where it is sure: it is always right, and every change is a loss."""
    images = pictures(4 * count, seed)
    logits = answers(model, images)
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    sure = np.sort(np.argsort(second - first, kind="stable")[:count])
    return HeldOut(images[sure], np.eye(CLASSES, dtype=np.float32)[logits[sure].argmax(axis=1)])


@pytest.fixture(scope="module")
def made():
    from vitrail.deployment.quantisation import quantise

    model = graph()
    calibration = labelled(model, 120, 1)
    held_out = labelled(model, 400, 2)
    return model, quantise(model, calibration.images, calibration.targets, held_out, 0.5)


def test_the_layer_with_outliers_is_the_most_sensitive_and_is_spared(made):
    _model, found = made
    assert {row.layer for row in found.rows} == {"planted", "middle", "head"}
    first, second, _ = found.rows
    assert first.layer == "planted" and first.error > 10 * second.error
    assert found.kept == ("planted",)
    assert found.tried[0][0] == 0 and found.tried[0][1] > 0.5  # all of it in int8 was tried, and is worse
    assert found.drop.points <= 0.5 and found.drop.n == 400


def test_what_comes_out_is_int8_and_holds_on_other_pictures(made):
    model, found = made
    weights = {
        node.get_friendly_name(): node.input_value(1).get_node()
        for node in found.model.get_ops()
        if node.get_type_name() == "MatMul"
    }
    stored = [
        node.get_element_type().to_string() for node in found.model.get_ops() if node.get_type_name() == "Constant"
    ]
    assert weights["planted"].get_type_name() == "Constant"  # as it was
    assert weights["head"].get_type_name() != "Constant" and sum("i8" in kind or "int8" in kind for kind in stored) == 2
    images = labelled(model, 1000, 3).images
    same = (answers(found.model, images).argmax(axis=1) == answers(model, images).argmax(axis=1)).mean()
    assert same > 0.995


def test_weights_are_quantised_per_channel_as_by_hand(made):
    """Float64: each row of the weights divided by its own largest value over 127, rounded."""
    _, found = made
    random = np.random.default_rng(0)
    plain = [random.standard_normal((rows, DIM)).astype(np.float32) for rows in (DIM, DIM, CLASSES)][1:]
    stored = [
        n.get_data() for n in found.model.get_ops() if n.get_type_name() == "Constant" and n.get_data().dtype == np.int8
    ]
    assert len(stored) == 2
    for values in plain:
        (kept,) = (array for array in stored if array.shape == values.shape)
        # SmoothQuant was not chosen, or the stored rows would be of other weights
        exact = values.astype(np.float64)
        scale = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert np.abs(kept * scale - exact).max() <= scale.max() * 0.51


def test_the_same_again_is_the_same(made):
    from vitrail.deployment.quantisation import quantise

    model, found = made
    calibration, held_out = labelled(model, 120, 1), labelled(model, 400, 2)
    again = quantise(model, calibration.images, calibration.targets, held_out, 0.5)
    assert again.facts() == found.facts()
    assert np.array_equal(answers(again.model, held_out.images), answers(found.model, held_out.images))


def test_nothing_is_spared_where_nothing_suffers():
    from vitrail.deployment.quantisation import quantise

    model = graph(shares=(1.0, 1.0, 1.0, 1.0))
    calibration, held_out = labelled(model, 60, 1), labelled(model, 200, 2)
    assert quantise(model, calibration.images, calibration.targets, held_out, 5).kept == ()


@pytest.mark.parametrize(("count", "classes"), [(39, 4), (60, 1)])
def test_too_few_pictures_or_one_class_are_refused(count, classes):
    from vitrail.deployment.quantisation import quantise

    model, images = graph(), pictures(count, 1)
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(count) % classes]
    with pytest.raises(DataError, match=f"{count} images of {classes} classes") as caught:
        quantise(model, images, targets, HeldOut(images, targets), 0.5)
    assert caught.value.code == "VT186"


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf"), 100])
def test_a_budget_that_is_no_share_is_refused(budget):
    from vitrail.deployment.quantisation import quantise

    images = labelled(graph(), 60, 1)
    with pytest.raises(UsageError, match="--max-drop") as caught:
        quantise(graph(), images.images, images.targets, images, budget)
    assert caught.value.code == "VT187"


def test_answers_that_are_no_numbers_are_refused():
    from vitrail.deployment.quantisation import quantise

    model = graph(shares=(1.0, float("nan"), 1.0, 1.0))
    images = pictures(60, 1)
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(60) % CLASSES]
    with pytest.raises(DataError, match="not finite for 15 of 15") as caught:
        quantise(model, images, targets, HeldOut(images, targets), 0.5)
    assert caught.value.code == "VT188"


class Pretended:
    """Layers a-f; each that is in int8 turns so many of 100 answers wrong."""

    layers = tuple("abcdef")

    def __init__(self, wrong):
        self.wrong, self.asked = wrong, []

    def logits(self, kept, exact=False):
        self.asked.append(tuple(kept))
        spoilt = sum(count for layer, count in self.wrong.items() if layer not in kept)
        right = np.tile(np.array([1.0, 0.0], dtype=np.float32), (100, 1))
        right[:spoilt] = right[:spoilt, ::-1]
        return lambda images: right


def judge():
    truth = np.tile(np.array([1.0, 0.0], dtype=np.float32), (100, 1))
    return Judge(HeldOut(np.zeros((100, 1, 1, 1), np.uint8), truth), truth)


@pytest.mark.parametrize(("budget", "kept"), [(0, "abcd"), (1, "abc"), (2, "abc"), (3, "ab"), (9, "a"), (60, "")])
def test_as_few_layers_are_spared_as_hold_the_budget(budget, kept):
    found = mix(Pretended({"a": 50, "b": 6, "c": 2, "d": 1}), "abcdef", judge(), budget)
    assert "".join(found.kept) == kept and found.drop.points <= budget
    by_hand = {0: 59, 1: 9, 2: 3, 3: 1, 4: 0, 5: 0}
    assert all(points == by_hand[count] for count, points in found.tried)


def test_a_budget_that_cannot_hold_is_an_error_that_says_the_best():
    with pytest.raises(VitrailError, match=r"best mix, with 1 of 6 layers spared, loses 7\.00 points") as caught:
        mix(Pretended({"f": 7, "a": 9}), "abcdef", judge(), 2)
    assert caught.value.code == "VT189" and caught.value.exit_status == 5


def test_what_spoils_most_for_the_least_work_is_spared_first():
    rows = [Sensitivity("a", 4.0, 1), Sensitivity("b", 2.0, 1), Sensitivity("c", 1.0, 1), Sensitivity("d", 0.1, 1)]
    work = {"a": 0.9, "b": 0.02, "c": 0.03, "d": 0.01}
    assert cheapest(rows, work, 0.03) == ("b", "d")  # a is worth more than is to be spent, c no longer fits
    assert cheapest(rows, work, 0.05) == ("b", "c") and cheapest(rows, work, 0) == ()
    pretended = Pretended({"a": 50, "b": 6})
    assert mix(pretended, "abcdef", judge(), 100, least=3).kept == ("a", "b", "c") and pretended.asked == [
        ("a", "b", "c")
    ]
    assert mix(Pretended({"e": 9}), "abcdef", judge(), 0, least=2).kept == ("a", "b", "c", "d", "e")


def test_few_mixes_are_tried_of_many_layers():
    class Deep(Pretended):
        layers = tuple(f"layer {number}" for number in range(200))

    deep = Deep({f"layer {number}": 1 for number in range(150, 170)})
    order = [*deep.layers[150:170], *deep.layers[:150], *deep.layers[170:]]
    assert len(mix(deep, order, judge(), 3).kept) == 17 and len(deep.asked) <= 12


def test_sensitivity_is_of_one_layer_alone_and_sorted():
    pretended = Pretended({"b": 10, "e": 30})
    rows = sensitivities(pretended, np.zeros((100, 1, 1, 1), np.uint8), judge().reference)
    assert [row.layer for row in rows] == list("ebacdf") and [row.agreement for row in rows[:3]] == [0.7, 0.9, 1.0]
    assert pretended.asked[0] == tuple("bcdef")
    assert isinstance(rows[0], Sensitivity)


def test_error_and_agreement_by_hand():
    reference = np.array([[2.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    logits = np.array([[2.0, 0.5], [1.0, 0.0]], dtype=np.float32)
    assert error(logits, reference) == pytest.approx(((0.25 + 1 + 4) / 4) / 1.0)
    assert agreement(logits, reference) == 0.5
    drop = Drop(n=200, hits=150, lost=5, won=2, agreement=0.96)
    assert drop.points == 1.5 and drop.interval[0] < 1.5 < drop.interval[1]
    assert drop.facts()["top1_before"] == 0.75 and drop.facts()["top1"] == pytest.approx(0.735)


def test_nothing_is_written_to_standard_output(capfd):
    from vitrail.deployment.quantisation import Int8

    Int8(graph(), pictures(8, 1)).model(())
    told = capfd.readouterr()
    assert told.out == "" and "INFO" not in told.err
