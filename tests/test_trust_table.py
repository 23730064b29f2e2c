"""The trust table on models whose evidence lies at known places; a planted change changes each verdict."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import evidence
from test_methods import RESNET, SMALL
from test_model import stirred
from vitrail.errors import DataError, UsageError
from vitrail.inspection.checking import COMPARED, check
from vitrail.inspection.gradients import GradCAM, GradientAttention, IntegratedGradients
from vitrail.inspection.methods import METHODS, RawAttention, Rollout
from vitrail.inspection.occlusion import PixelOcclusion, TokenDrop
from vitrail.model.heads import Features
from vitrail.model.trunks import PreActivation
from vitrail.model.vit import build

FINDERS = (GradientAttention(), IntegratedGradients(steps=8), GradCAM(), TokenDrop(), PixelOcclusion())
LOOKERS = (RawAttention(), Rollout())
COUNT = 20


def verdicts(table):
    return {row.method: row.verdict for row in table.rows}


@pytest.fixture(scope="module")
def pictures():
    return evidence.pictures(COUNT)


@pytest.fixture(scope="module")
def honest(pictures):
    return check(evidence.model(), [pictures[:2]], (*FINDERS, *LOOKERS))


@pytest.mark.parametrize("method", FINDERS, ids=lambda method: method.name)
def test_the_planted_parts_are_found_and_another_class_has_others(method, pictures):
    images, targets, places = pictures
    model = evidence.model()
    tensors = model.preprocessing.normalise(torch.from_numpy(images))
    first = torch.from_numpy(targets.argmax(axis=1))
    second = torch.tensor([(set(np.flatnonzero(place.any(axis=(1, 2)))) - {int(own)}).pop()
                           for place, own in zip(places, first, strict=True)])  # fmt: skip
    for classes, count in ((first, 3), (second, 1)):
        maps = method.maps(model.module, tensors, classes).values
        for values, place, index in zip(maps, places, classes, strict=True):
            brightest = np.argsort(-values, axis=None)[:count]
            assert place[index].ravel()[brightest].all()


def test_what_finds_them_is_supported_and_even_attention_is_not(honest):
    assert verdicts(honest) == {
        **{method.name: "supported" for method in FINDERS}, "attention": "not supported", "rollout": "not supported"
    }  # fmt: skip
    rows = {row.method: row.figures for row in honest.rows}
    for method in FINDERS:
        assert rows[method.name]["saco"].mean > 0.9 and rows[method.name]["classes"].mean < 0
        assert rows[method.name]["ahead of edges"].low > 0.2
    for method in LOOKERS:
        assert rows[method.name]["saco"].mean == 0 and rows[method.name]["classes"].mean == 1
    assert (honest.images, honest.compared, honest.grid, honest.removal) == (20, 20, (4, 5), "tokens dropped")
    assert honest.top1 == 1 and honest.majority < 0.6
    assert rows["integrated-gradients"]["gap"].mean < 0.05 and "gap" not in rows["token-drop"]


def test_a_model_that_says_the_same_of_everything_supports_nothing(pictures):
    model = evidence.model()
    with torch.no_grad():
        model.module.head.linear.weight.zero_()
    table = check(model, [pictures[:2]], (GradientAttention(), TokenDrop(), Rollout()))
    assert set(verdicts(table).values()) == {"not supported"}
    assert all("not ahead of a random one" in row.reasons[0] for row in table.rows)


def test_an_untrained_model_supports_nothing(pictures):
    model = evidence.classifier(build(evidence.model().module.config, 0).eval())  # its head is zero, as the paper's
    assert set(verdicts(check(model, [pictures[:2]], (GradCAM(), TokenDrop()))).values()) == {"not supported"}


def test_shuffled_labels_make_every_explanation_one_of_a_guess(honest, pictures):
    images, targets, _ = pictures
    table = check(evidence.model(), [(images, np.roll(targets, 1, axis=1))], (GradientAttention(), TokenDrop()))
    assert table.top1 == 0 and set(verdicts(table).values()) == {"weak"}
    assert all("most common class" in row.reasons[-1] for row in table.rows)
    known = {row.method: row.figures for row in honest.rows}
    for row in table.rows:
        assert row.figures == known[row.method]  # the model is as faithfully explained as ever


def test_attention_is_supported_until_it_is_made_even():
    images, targets, _ = evidence.pictures(COUNT, others=0)
    found = check(evidence.model("class"), [(images, targets)], LOOKERS)
    assert set(verdicts(found).values()) == {"supported"}
    blind = check(evidence.model("class", attentive=False), [(images, targets)], (*LOOKERS, TokenDrop()))
    assert verdicts(blind) == {"attention": "not supported", "rollout": "not supported", "token-drop": "supported"}


def test_attention_that_serves_two_classes_alike_is_weak(pictures):
    table = check(evidence.model("class"), [pictures[:2]], LOOKERS)
    assert set(verdicts(table).values()) == {"weak"}
    assert "SaCo" in table.rows[0].reasons[0]


def test_baselines_are_measured_and_pairs_are_by_image(honest):
    assert set(honest.baselines) == {"random", "centre", "edges"}
    row = next(row for row in honest.rows if row.method == "token-drop")
    for other in honest.baselines:
        falls = honest.baselines[other]["deletion"].mean - row.figures["deletion"].mean
        returns = row.figures["insertion"].mean - honest.baselines[other]["insertion"].mean
        assert row.figures[f"deletion ahead of {other}"].mean == pytest.approx(falls)
        assert row.figures[f"insertion ahead of {other}"].mean == pytest.approx(returns)
        assert row.figures[f"ahead of {other}"].mean == pytest.approx((falls + returns) / 2)
    falls, returns = honest.curves["token-drop"]
    assert np.mean(falls) == pytest.approx(row.figures["deletion"].mean) and len(returns) == 9
    assert [name for name, _ in row.cascade] == ["head", "layer 0", "stem"]
    json.dumps(honest.to_json(), allow_nan=False)


def test_batches_and_their_sizes_change_nothing(honest, pictures):
    images, targets, _ = pictures
    parts = ((images[start : start + 7], targets[start : start + 7]) for start in range(0, COUNT, 7))
    again = check(evidence.model(), parts, (GradCAM(), TokenDrop(), Rollout()))
    known = {row.method: row for row in honest.rows}
    for row in again.rows:
        before = known[row.method]
        assert row.verdict == before.verdict
        for name, figure in row.figures.items():
            assert (figure is None) == (before.figures[name] is None)
            assert figure is None or figure.mean == pytest.approx(before.figures[name].mean, abs=1e-4), (
                row.method,
                name,
            )


def test_images_come_and_go(pictures):
    """Of an image some numbers are kept, and no more: its batch is gone before the next but one is read."""
    images, targets, _ = pictures
    seen, alive = [], []

    def batches():
        for _ in range(8):
            batch = images[:10].copy()
            seen.append(weakref.ref(batch))
            alive.append(sum(reference() is not None for reference in seen))
            yield batch, targets[:10]

    assert check(evidence.model(), batches(), (RawAttention(),)).images == 80
    assert max(alive) <= 2 and COMPARED == 20


def test_parts_of_a_resnet_are_painted_and_attention_is_refused():
    model = evidence.classifier(stirred(replace(RESNET, trunk=PreActivation((1,), 32), image_size=(16, 16)), scale=0.1))
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 16, 16), dtype=np.uint8)
    targets = np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    table = check(model, [(images, targets)], [METHODS[name]() for name in ("attention", "grad-cam", "token-drop")])
    assert [row.method for row in table.rows] == ["grad-cam"] and table.grid == (4, 4)
    assert "painted" in table.removal
    assert "no attention" in table.refused["attention"] and "fewer tokens" in table.refused["token-drop"]
    with pytest.raises(UsageError, match="no attention"):
        check(model, [(images, targets)], LOOKERS)


TRUE = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
BAD = {
    "no images": ([], "VT143"),
    "too few": ([(np.zeros((5, 1, 16, 20), np.uint8), TRUE)], "VT143"),
    "mixed sizes": ([(np.zeros((5, 1, 16, 20), np.uint8), TRUE), (np.zeros((5, 1, 8, 20), np.uint8), TRUE)], "VT144"),
    "not uint8": ([(np.zeros((5, 1, 16, 20), np.float32), TRUE)], "VT144"),
    "a list": ([([np.zeros((1, 16, 20), np.uint8)], TRUE)], "VT144"),
    "targets missing": ([(np.zeros((5, 1, 16, 20), np.uint8), TRUE[:4])], "VT144"),
}


@pytest.mark.parametrize("case", BAD)
def test_images_that_cannot_be_used(case):
    batches, code = BAD[case]
    with pytest.raises(DataError) as refused:
        check(evidence.model(), iter(batches), (Rollout(),))
    assert refused.value.code == code


def test_a_model_without_classes_has_nothing_to_fall(pictures):
    with pytest.raises(UsageError) as refused:
        check(evidence.classifier(replace(SMALL, head=Features()).build().eval()), [pictures[:2]], (Rollout(),))
    assert refused.value.code == "VT045"
    with pytest.raises(UsageError, match="cannot be read from a dict"):
        check({}, [pictures[:2]], (Rollout(),))
