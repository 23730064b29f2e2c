"""timm as an oracle: installed without its dependencies, of which a stand-in for torchvision is enough for its models."""

import importlib.util
import os
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

STANDINS = Path(__file__).parent / "standins"


@cache
def timm():
    """The package. While it is imported, the stand-in is found; nobody else shall take it for torchvision."""
    if importlib.util.find_spec("timm") is None:
        if os.environ.get("VITRAIL_REQUIRE_PACKAGES"):
            pytest.fail("timm is not installed, and VITRAIL_REQUIRE_PACKAGES is set")
        pytest.skip("timm is not installed: make install, or pip install --no-deps timm==1.0.31")
    standing_in = importlib.util.find_spec("torchvision") is None
    if standing_in:
        sys.path.insert(0, str(STANDINS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own, about Python versions
            import timm as found
    finally:
        if standing_in:
            sys.path.remove(str(STANDINS))
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    return found
