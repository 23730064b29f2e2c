"""Shapes are checked while the tests run, and everything that may be absent is skipped aloud."""

import os
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Plain annotations in production; in the tests every signature of the model checks its shapes.
install_import_hook("vitrail.model", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(min(2, os.cpu_count() or 1))

PARITY = Path(__file__).parents[2] / "shared" / "parity"
WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"


@pytest.fixture
def parity():
    """Reads the arrays of one official fixture: parity("a_token.io")."""
    if not PARITY.is_dir():
        pytest.skip("the official parity fixtures are not beside the project (../shared/parity)")
    return lambda name: dict(np.load(PARITY / f"{name}.npz"))


@pytest.fixture
def parity_path():
    if not PARITY.is_dir():
        pytest.skip("the official parity fixtures are not beside the project (../shared/parity)")
    return lambda name: PARITY / f"{name}.npz"


@pytest.fixture
def debian_fashion():
    """The four files that Debian's package dataset-fashion-mnist installs."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        missing_package("dataset-fashion-mnist")
    return folder


def missing_package(name):
    """Skips aloud; fails where the packages were promised, as in CI."""
    if os.environ.get("VITRAIL_REQUIRE_PACKAGES"):
        pytest.fail(f"the Debian package {name} is not installed, and VITRAIL_REQUIRE_PACKAGES is set")
    pytest.skip(f"the Debian package {name} is not installed: apt-get install {name}")
