"""Gradients of the pixels, and what is made of them: always in the ball, in 0 to 255, and never weaker for more steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vitrail
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.evaluation.attacks import (
    FGSM,
    PGD,
    AdversarialPatch,
    Noise,
    Patch,
    RandomPatch,
    corners,
    cross_entropy,
    gradient_refusal,
    learned_patch,
    patch_size,
    placed,
    stepped,
)
from vitrail.evaluation.trials import Shown, Subject
from vitrail.model.backbone import build
from vitrail.model.heads import LinearHead
from vitrail.model.resnet import ResNetConfig
from vitrail.model.trunks import PostActivation
from vitrail.predictor import Differentiable
from vitrail.preprocessing import Preprocessing

SIZE, CLASSES = (8, 12), 3
LUCK = np.random.default_rng(0)
TARGETS = np.eye(CLASSES, dtype=np.float32)[np.arange(20) % CLASSES]


class Linear:
    """A predictor whose gradient is known: softmax of weights times pixels; it keeps what it was shown."""

    preprocessing = Preprocessing(SIZE, 1, mean=(0.0,), std=(1.0,))
    classes = ("a", "b", "c")
    multi_label = False

    def __init__(self, seed=0):
        self.weights = np.random.default_rng(seed).normal(size=(np.prod(SIZE), CLASSES)) / 10
        self.seen = []

    def logits(self, images):
        self.seen.append(images)
        return (images.reshape(len(images), -1) / 255 @ self.weights).astype(np.float32)

    def represent(self, images):
        return self.logits(images)

    def gradients(self, images, targets):
        logits = self.logits(images)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = (odds / odds.sum(axis=1, keepdims=True) - targets) @ self.weights.T / 255
        return logits, gradient.reshape(images.shape).astype(np.float32)


def subject(predictor, name="linear"):
    return Subject(name, predictor, "CNN", (1, 1), SIZE)


def shown(predictor, count=20):
    """Images that the predictor gets right, so that there is something to lose."""
    found = []
    while len(found) < count:
        image = LUCK.integers(0, 256, (1, 1, *SIZE), dtype=np.uint8)
        if np.argmax(predictor.logits(image)) == len(found) % CLASSES:
            found.append(image[0])
    images = np.stack(found)
    predictor.seen.clear()
    return Shown(
        images, tuple(map(str, range(count))), TARGETS[:count], 0, lambda: (images, TARGETS), lambda more: images
    )


@pytest.fixture(scope="module")
def resnet():
    config = ResNetConfig(PostActivation((1,), 32), LinearHead(3), SIZE, 1)
    model = build(config, 0)
    torch.nn.init.normal_(model.head.linear.weight, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(SIZE, 1, mean=(0.3,), std=(0.4,))
    return Classifier(Checkpoint(config, model.state_dict(), preprocessing, ("a", "b", "c")))


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradients_of_a_model_equal_differences_in_float64(resnet, multi_label):
    model = Classifier(replace(resnet.checkpoint, multi_label=multi_label))
    images = LUCK.integers(0, 256, (2, 1, *SIZE), dtype=np.uint8)
    targets = np.array([[1, 0, 0], [0, 1, multi_label]], dtype=np.float32)
    logits, gradient = model.gradients(images, targets)
    np.testing.assert_allclose(logits, model.logits(images), atol=1e-5)
    double = model.checkpoint.build().double()

    def loss(pixels):
        with torch.no_grad():
            values = double((torch.from_numpy(pixels) / 255 - 0.3) / 0.4).numpy()
        return cross_entropy(values, targets, multi_label)

    for place in [(0, 3, 4), (0, 7, 11), (0, 0, 0), (0, 5, 2)]:
        step = np.zeros(images.shape)
        step[(slice(None), *place)] = 1e-3
        slope = (loss(images + step) - loss(images - step)) / 2e-3
        np.testing.assert_allclose(gradient[(slice(None), *place)], slope, rtol=2e-3, atol=1e-7)
    assert isinstance(model, Differentiable)


def test_an_engine_without_gradients_refuses_and_says_why():
    class Engine:
        preprocessing, classes, multi_label = Linear.preprocessing, Linear.classes, False

        def logits(self, images):
            return np.zeros((len(images), CLASSES), np.float32)

    assert "no gradients" in gradient_refusal(subject(Engine()))
    assert not gradient_refusal(subject(Linear()))
    for trial in (FGSM(), PGD(2), AdversarialPatch({})):
        assert trial.refusal(subject(Engine()))


@pytest.mark.parametrize("radius", [1, 3, 8])
def test_attacks_stay_in_the_ball_and_within_the_pixels(radius):
    predictor = Linear()
    batch = shown(predictor)
    images = batch.images.astype(int)
    for trial in (FGSM((radius,)), PGD(radius, (1, 6)), Noise((radius,))):
        predictor.seen.clear()
        list(trial.answers([subject(predictor)], batch))
        for seen in predictor.seen:
            assert seen.dtype == np.uint8
            assert np.abs(seen.astype(int) - images).max() <= radius
    assert np.abs(predictor.seen[-1].astype(int) - images).max() == radius  # the noise goes all the way
    dark = np.zeros_like(batch.images)
    assert stepped(dark, -np.ones(dark.shape), 5, dark, 8).max() == 0
    assert stepped(dark + np.uint8(254), np.ones(dark.shape), 5, dark + np.uint8(254), 8).max() == 255


def test_fgsm_on_a_linear_model_is_the_best_there_is():
    """Of a linear model with two classes in question, no image in the ball has a higher loss."""
    predictor = Linear()
    batch = shown(predictor)
    answer = next(iter(FGSM((4,)).answers([subject(predictor)], batch)))
    best = answer.extra["loss"]
    for _ in range(50):
        step = LUCK.integers(-4, 5, batch.images.shape)
        other = np.clip(batch.images + step, 0, 255).astype(np.uint8)
        assert (cross_entropy(predictor.logits(other), batch.targets, False) <= best + 1e-6).mean() > 0.95


def test_more_steps_are_never_weaker_and_raise_the_loss():
    predictor = Linear()
    batch = shown(predictor)
    answers = list(PGD(6, (1, 2, 4, 8)).answers([subject(predictor)], batch))
    right = np.stack([answer.values for answer in answers])
    assert (np.diff(right, axis=0) <= 0).all() and right[-1].sum() < right[0].sum()
    losses = [answer.extra["loss"].mean() for answer in answers]
    assert losses == sorted(losses) and losses[-1] > losses[0]
    noise = next(iter(Noise((6,)).answers([subject(predictor)], batch))).values
    assert right[-1].mean() < noise.mean()


def test_an_image_that_was_fooled_once_stays_fooled():
    class Fickle(Linear):
        calls = 0

        def gradients(self, images, targets):
            self.calls += 1
            right = 10 * np.asarray(targets)
            return (-right if self.calls == 2 else right).astype(np.float32), np.ones(images.shape, np.float32)

    predictor = Fickle()
    answers = list(PGD(4, (1, 2, 3)).answers([subject(predictor)], shown(predictor)))
    assert [answer.values.mean() for answer in answers] == [0, 0, 0]
    assert answers[0].extra["loss"].mean() > answers[1].extra["loss"].mean()


def test_a_patch_is_learned_that_a_noise_patch_of_the_area_is_not():
    predictor = Linear()
    batch = shown(predictor)
    made = learned_patch(predictor, lambda step: (batch.images, batch.targets), SIZE, 0.25, 0, 40, False)
    assert made.pattern.shape[1:] == patch_size(SIZE, 0.25) == (4, 6)
    assert np.mean(made.losses[-4:]) > np.mean(made.losses[:4])
    trial = AdversarialPatch({"linear": [made]}, (0.25,))
    learned = next(iter(trial.answers([subject(predictor)], batch)))
    noise = next(iter(RandomPatch((0.25,)).answers([subject(predictor)], batch)))
    assert learned.values.mean() < noise.values.mean()
    again = learned_patch(predictor, lambda step: (batch.images, batch.targets), SIZE, 0.25, 0, 40, False)
    np.testing.assert_array_equal(again.pattern, made.pattern)


@pytest.mark.parametrize("area", [0.05, 0.15, 0.25])
def test_a_patch_covers_its_area_and_the_rest_is_the_picture(area):
    size = (28, 56)
    rows, cols = patch_size(size, area)
    assert abs(rows * cols / (28 * 56) - area) < 0.02
    images = np.zeros((200, 1, *size), np.uint8)
    where = corners(LUCK.random((200, 2)), size, (rows, cols))
    covered = placed(images, Patch(np.full((1, rows, cols), 9, np.uint8), ()).pattern, where)
    assert ((covered == 9).sum(axis=(1, 2, 3)) == rows * cols).all()
    assert where.min() == 0 and tuple(where.max(axis=0)) == (28 - rows, 56 - cols)


def test_tokens_that_are_left_out_leave_the_others_as_they_were(run, resnet):
    model = vitrail.load(run)
    images = LUCK.integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    count = model.module.config.num_tokens - model.module.config.context.class_tokens
    every = np.tile(np.arange(count), (3, 1))
    np.testing.assert_allclose(model.logits_of_patches(images, every), model.logits(images), atol=1e-5)
    # What lies in a patch that is left out says nothing any more.
    rows, cols = model.module.config.stride
    painted = images.copy()
    painted[:, :, :rows, :cols] = 255 - painted[:, :, :rows, :cols]
    assert np.abs(model.logits(images) - model.logits(painted)).max() > 1e-4
    np.testing.assert_allclose(
        model.logits_of_patches(images, every[:, 1:]), model.logits_of_patches(painted, every[:, 1:]), atol=1e-6
    )
    with pytest.raises(UsageError, match="cannot leave tokens out") as told:
        resnet.logits_of_patches(images, every)
    assert told.value.code == "VT041"
