"""Objectives beside the plain losses: distillation, moving averages, sharpness, weights of classes; each by its formula."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
import vitrail
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.data.batches import Batch
from vitrail.errors import UsageError
from vitrail.model.heads import LinearHead, TwoHeads
from vitrail.model.pools import ClassToken, DistilledToken
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.objectives.averaging import Averaged
from vitrail.objectives.distillation import Distillation
from vitrail.objectives.sharpness import SharpnessAware
from vitrail.objectives.supervised import Supervised, balanced_weights
from vitrail.preprocessing import Preprocessing
from vitrail.training import loop
from vitrail.training.loop import Trainer

RANDOM = np.random.default_rng(3)
CLASSES = ("a", "b", "c")
PREPROCESSING = Preprocessing((8, 8), 1, mean=(0.5,), std=(0.5,))


def vit(seed=0, pool=ClassToken(), head=LinearHead(3), side=8):
    torch.manual_seed(seed)
    model = ViT(ViTConfig(Size(16, 1, 2, 24), LinearPatches((4, 4), 1), pool=pool, head=head, image_size=(side, side)))
    for parameter in model.parameters():  # no zeros anywhere
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(count=6):
    images = torch.from_numpy(RANDOM.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))
    labels = torch.eye(3)[torch.from_numpy(RANDOM.integers(0, 3, count))]
    return Batch((images,), labels, tuple(map(str, range(count))), torch.ones(count))


def log_shares(logits):
    logits = logits.detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture
def teacher(tmp_path):
    """A checkpoint for images of 12 px whose classes are the same in another order, and one more."""
    model = vit(9, head=LinearHead(4), side=12)
    preprocessing = replace(PREPROCESSING, image_size=(12, 12), mean=(0.2,), std=(0.7,))
    vitrail.save(
        Checkpoint(model.config, model.state_dict(), preprocessing, ("c", "x", "a", "b")), tmp_path / "teacher"
    )
    return tmp_path / "teacher", model.eval(), preprocessing


def asked(model, preprocessing, images):
    """The teacher's logits in the student's order."""
    larger = F.interpolate(images.float(), (12, 12), mode="bilinear", antialias=True)
    return model((larger / 255 - 0.2) / 0.7)[:, [2, 3, 0]]


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("two", [True, False], ids=["two heads", "one head"])
def test_distillation_equals_its_formula(teacher, kind, two):
    """DeiT, eq. 2 and 3, in float64: the first head learns the labels, the second what the teacher says."""
    student = vit(1, DistilledToken(), TwoHeads(3)) if two else vit(1)
    config = Distillation(str(teacher[0]), kind, temperature=2.0, weight=0.3, labels=Supervised(label_smoothing=0.1))
    objective, given = config.build(student, PREPROCESSING, CLASSES), batch()
    step = objective(given)
    normed = (given.views[0].float() / 255 - 0.5) / 0.5
    parts = student.parts(normed)
    assert len(parts) == 1 + two
    torch.testing.assert_close(student(normed), torch.stack(parts).mean(dim=0))
    said = asked(*teacher[1:], given.views[0])
    labels = -((given.labels.numpy() * 0.9 + 0.1 / 3) * log_shares(parts[0])).sum(axis=1)
    if kind == "hard":
        told = -log_shares(parts[-1])[np.arange(6), said.argmax(dim=1).numpy()]
    else:
        target, answer = log_shares(said / 2), log_shares(parts[-1] / 2)
        told = 4 * (np.exp(target) * (target - answer)).sum(axis=1)
    assert step.loss.item() == pytest.approx((0.7 * labels + 0.3 * told).sum(), rel=1e-5)
    hits = (student(normed).argmax(1) == given.labels.argmax(1)).sum().item()
    assert step.metrics["top1"].item() == hits and step.margins.shape == (6,)
    step.loss.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_teacher_answers_as_it_is_evaluated(teacher):
    """Whatever it was trained with: the loop's train() does not wake its dropout."""
    objective = Distillation(str(teacher[0]), weight=1.0).build(vit(1), PREPROCESSING, CLASSES)
    objective.teacher.register_module("dropped", torch.nn.Dropout(0.5))
    objective.teacher.register_forward_hook(lambda module, given, answer: module.dropped(answer))
    given = batch()
    assert objective.train()(given).loss == objective.eval()(given).loss and not objective.teacher.dropped.training


def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path):
    path = str(teacher[0])
    with pytest.raises(UsageError, match="does not know 1 of 4 classes, such as d"):
        Distillation(path).build(vit(head=LinearHead(4)), PREPROCESSING, (*CLASSES, "d"))
    with pytest.raises(UsageError, match="4 classes, the images 3"):
        Distillation(path).build(vit(), PREPROCESSING)
    with pytest.raises(UsageError, match="reads 1 channels, the student 3"):
        Distillation(path).build(vit(), Preprocessing((8, 8), 3), CLASSES)
    for fields in ({"temperature": 0.0}, {"weight": 1.1}, {"labels": Supervised("sigmoid")}):
        with pytest.raises(UsageError, match=r"objective\."):
            Distillation(path, **fields)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_equals_its_formula(warmup):
    """Ten updates in float64; what is evaluated is the average, what learns is the other."""
    student = vit(2)
    objective = Averaged(decay=0.7, warmup=warmup).build(student, PREPROCESSING)
    average = {name: value.double().numpy().copy() for name, value in student.state_dict().items()}
    for done in range(10):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += torch.from_numpy(RANDOM.normal(size=parameter.shape)).float()
        objective.after_step()
        decay = min(0.7, (1 + done) / (10 + done)) if warmup else 0.7
        for name, value in student.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value.double().numpy()
    for name, value in objective.backbone.state_dict().items():
        np.testing.assert_allclose(value, average[name], rtol=0, atol=3e-6)
    assert not any(parameter.requires_grad for parameter in objective.backbone.parameters())
    given = batch()
    assert objective(given).loss == Supervised().build(student, PREPROCESSING)(given).loss


def test_the_loop_moves_the_average_after_every_update(pictures, tmp_path, monkeypatch):
    """What a run exports is the average of the weights that learnt, step by step in float64."""
    seen, update = [], Trainer._update

    def listening(self, batch):
        learns = self.parts.objective.objective.backbone.state_dict()
        seen[:] = seen or [{name: value.double() for name, value in learns.items()}]
        update(self, batch)
        seen.append({name: value.double() for name, value in learns.items()})

    monkeypatch.setattr(Trainer, "_update", listening)
    changes = {"objective": "averaged", "objective.decay": "0.7", "objective.warmup": "false"}
    tiny.tiny(pictures, tmp_path / "run", training__evaluations=1, **changes)
    average, *later = seen
    assert len(later) == 12
    for weights in later:
        average = {name: 0.7 * value + 0.3 * weights[name] for name, value in average.items()}
    for name, value in read(tmp_path / "run").weights.items():
        np.testing.assert_allclose(value, average[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("outer", [Averaged, SharpnessAware])
def test_what_is_wrapped_hears_of_every_step(outer):
    objective = outer(Averaged()).build(vit(), PREPROCESSING)
    objective.after_step()
    assert objective.objective.updates == 1


def test_sharpness_equals_its_formula():
    """Foret et al., eq. 2 and 3: the gradient at w + rho g / |g|, by moving the weights by hand."""
    student, given = vit(3), batch()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    plain = Supervised().build(student, PREPROCESSING)
    step = SharpnessAware(rho=0.4).build(student, PREPROCESSING)(given)
    step.loss.backward()
    ours = {name: p.grad.clone() for name, p in student.named_parameters()}
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    student.zero_grad()
    here = plain(given)
    here.loss.backward()
    assert step.loss.item() == pytest.approx(here.loss.item(), rel=1e-6) and step.metrics == here.metrics
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    norm = np.sqrt(sum((g.double().numpy() ** 2).sum() for g in gradients.values()))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter += 0.4 * gradients[name] / norm
    student.zero_grad()
    plain(given).loss.backward()
    moved = 0
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)
        moved = max(moved, (parameter.grad - gradients[name]).abs().max())
    assert moved > 0.1  # far from the plain gradient


def test_sharpness_lets_be_what_has_no_part_in_the_loss():
    student = vit(3)
    student.idle = torch.nn.Parameter(torch.ones(2))
    SharpnessAware().build(student, PREPROCESSING)(batch()).loss.backward()
    assert student.idle.grad is None or not student.idle.grad.any()


def test_class_weights_equal_pytorchs():
    """F.cross_entropy with weights and smoothing; balanced: n / (classes * count), as scikit-learn has it."""
    logits = torch.from_numpy(RANDOM.normal(size=(7, 3))).float()
    classes = torch.tensor([0, 1, 2, 0, 0, 1, 0])
    weights = balanced_weights([4, 2, 1])
    assert weights == pytest.approx((7 / 12, 7 / 6, 7 / 3))
    assert sum(n * w for n, w in zip([4, 2, 1], weights, strict=True)) == pytest.approx(7)
    assert balanced_weights([4, 0, 2, 1]) == pytest.approx((7 / 12, 0, 7 / 6, 7 / 3))
    for smoothing in (0.0, 0.2):
        ours = Supervised("softmax", smoothing, weights).losses(logits, torch.eye(3)[classes])
        theirs = F.cross_entropy(logits, classes, torch.tensor(weights), label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(ours, theirs)
    several = (torch.from_numpy(RANDOM.random((7, 3))) > 0.5).float()
    ours = Supervised("sigmoid", class_weights=weights).losses(logits, several)
    theirs = F.binary_cross_entropy_with_logits(logits, several, torch.tensor(weights), reduction="none").sum(dim=1)
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(UsageError, match=r"class_weights is \(1.0,\).*\n.*3 numbers"):
        Supervised(class_weights=(1.0,)).build(vit(), PREPROCESSING)


OBJECTIVES = {
    "averaged": {"objective": "averaged", "objective.decay": "0.9"},
    "sharpness-aware": {"objective": '{"type": "averaged", "objective": {"type": "sharpness-aware"}}'},
    "distillation": {"objective": "distillation", "objective.kind": "soft"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_crash_inside_an_epoch_changes_nothing(pictures, run, tmp_path, monkeypatch, name):
    """What an objective keeps is a part of the state: the average, its count, the teacher."""
    changes = {**OBJECTIVES[name], **({"objective.teacher": str(run)} if name == "distillation" else {})}
    tiny.tiny(pictures, tmp_path / "whole", **changes)
    update = Trainer._update
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVE_SECONDS", -1)
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0 if self.step == 7 else update(self, batch))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "crashed", **changes)
    tiny.tiny(pictures, tmp_path / "crashed", **changes)
    assert tiny.digests(tmp_path / "crashed") == tiny.digests(tmp_path / "whole")
    assert tiny.digests(tmp_path / "whole")["model.safetensors"] != tiny.digests(run)["model.safetensors"]


def test_the_average_is_what_is_exported_and_evaluated(pictures, tmp_path):
    """A decay of almost 1 without warm-up: the exported weights are still the initial ones, whose head is zero."""
    tiny.tiny(
        pictures,
        tmp_path / "run",
        **{"objective": "averaged", "objective.decay": "0.999999999", "objective.warmup": "false"},
    )
    weights = read(tmp_path / "run").weights
    assert weights["head.linear.weight"].abs().max() < 1e-6
    summary = json.loads((tmp_path / "run" / "eval" / "test" / "summary.json").read_text())
    assert summary["loss"] == pytest.approx(np.log(2), abs=1e-3)
