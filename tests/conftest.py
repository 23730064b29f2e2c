"""Shapes are checked while the tests run, and everything that may be absent is skipped aloud."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Plain annotations in production; in the tests every signature of the model checks its shapes.
install_import_hook("vitrail.model", "beartype.beartype")

import torch  # noqa: E402

import tiny  # noqa: E402
from vitrail import cli  # noqa: E402

# Tiny models: one thread is as fast as two, and does not wait for a busy core. Subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

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
def real_weights():
    """A pre-trained ViT-S/14 as a folder of Hugging Face, with its oracle."""
    if not (WEIGHTS / "dinov2-vits14").is_dir():
        pytest.skip("the real network is not beside the project (../shared/weights)")
    return WEIGHTS / "dinov2-vits14"


@pytest.fixture
def debian_fashion():
    """The four files that Debian's package dataset-fashion-mnist installs."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        missing_package("dataset-fashion-mnist")
    return folder


@pytest.fixture(autouse=True, scope="session")
def no_flush():
    """No test cuts the power, and waiting for the disk would take a third of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Forty grey pictures of 8 px in two classes; not to be changed."""
    return tiny.write_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="session")
def run(pictures, tmp_path_factory):
    """A finished tiny run on `pictures`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny.tiny(pictures, folder)
    return folder


@pytest.fixture
def vitrail_command(capsys, monkeypatch):
    """Types a command in this process: vitrail_command("eval", run).status, .out, .err."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vitrail", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return SimpleNamespace(status=ended.value.code, **capsys.readouterr()._asdict())

    return call


def missing_package(name):
    """Skips aloud; fails where the packages were promised, as in CI."""
    if os.environ.get("VITRAIL_REQUIRE_PACKAGES"):
        pytest.fail(f"the Debian package {name} is not installed, and VITRAIL_REQUIRE_PACKAGES is set")
    pytest.skip(f"the Debian package {name} is not installed: apt-get install {name}")
