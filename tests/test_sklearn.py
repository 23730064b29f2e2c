"""The estimators keep scikit-learn's contract, take pictures in every form, and fit into its pipelines."""

import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.linear_model import RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from vitrail.sklearn import ViTClassifier, ViTEmbedder


@pytest.mark.slow
@parametrize_with_checks([ViTEmbedder(), ViTClassifier(), ViTClassifier(method="linear")])
def test_the_contract(estimator, check):
    check(estimator)
