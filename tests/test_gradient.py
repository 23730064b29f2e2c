"""The gradient of a step, in parts: means over what could be read, however it is divided."""

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.data.batches import Batch
from vitrail.objectives.supervised import Supervised, SupervisedObjective
from vitrail.preprocessing import Preprocessing
from vitrail.training.gradient import accumulated


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("weights", [[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
def test_accumulated_parts_give_means_over_what_could_be_read(size, weights):
    """Loss, gradient and metrics of the readable ones, by hand in float64; where there is none, nothing and no NaN."""
    random = np.random.default_rng(1)
    images, slope = random.integers(0, 256, (5, 3, 1, 1)), random.normal(size=(3, 3))
    labels = np.eye(3)[random.integers(0, 3, 5)]
    batch = Batch(
        (torch.from_numpy(images.astype(np.uint8)),), torch.from_numpy(labels).float(), tuple("abcde"),
        torch.tensor(weights).float(),
    )  # fmt: skip
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    model[1].weight.data = torch.from_numpy(slope).float()
    objective = SupervisedObjective(Supervised(), model, Preprocessing((1, 1), 3))
    sums = accumulated(objective, batch, size, torch.autocast("cpu", enabled=False))
    inputs, read = images[:, :, 0, 0] / 127.5 - 1, np.array(weights, bool)
    powers = np.exp(inputs @ slope.T)
    shares = powers / powers.sum(axis=1, keepdims=True)
    count = max(1, read.sum())
    assert sums.loss.item() == pytest.approx(-np.log((shares * labels).sum(axis=1))[read].sum() / count, rel=1e-5)
    assert sums.metrics["top1"].item() == pytest.approx((shares.argmax(1) == labels.argmax(1))[read].sum() / count)
    np.testing.assert_allclose(model[1].weight.grad, (shares - labels)[read].T @ inputs[read] / count, atol=1e-6)
    assert torch.cat(sums.margins).shape == (5,)
