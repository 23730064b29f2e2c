"""Weights without classes: features, and a plain word where a prediction is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from test_model import TINY, stirred
from vitrail.checkpoints.adapt import adapt
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model.heads import Features, LinearHead
from vitrail.preprocessing import Preprocessing


@pytest.mark.parametrize("width", [None, 5])
def test_features_are_given_and_classes_can_be_trained(width):
    config = replace(TINY, head=Features(width))
    checkpoint = Checkpoint(config, stirred(config).state_dict(), Preprocessing(TINY.image_size), ())
    model, pictures = Classifier(checkpoint), np.zeros((2, 3, 32, 32), np.uint8)
    assert model.represent(pictures).shape == model.logits(pictures).shape == (2, width or 32)
    assert np.array_equal(model.represent(pictures), model.logits(pictures))
    with pytest.raises(UsageError, match="no classes") as caught:
        model.predict(pictures[0].transpose(1, 2, 0))
    assert caught.value.code == "VT045" and "--weights" in str(caught.value.fix)
    trained = adapt(checkpoint, ["a", "b"])
    assert trained.config.head == LinearHead(2)
    assert torch.equal(trained.build()(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 2))
