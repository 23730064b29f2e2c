"""The temperature that a model's logits are divided by before they become probabilities, beside its weights.

Folders of every format keep it in calibration.json, which no other program reads; files that Vitrail wrote keep it with
the rest of what is no array (extras.py). The weights stay as they are, and so do the hashes of a saved state.
"""

from __future__ import annotations

from pathlib import Path

from vitrail.checkpoints.containers import CALIBRATION
from vitrail.checkpoints.loading import resolve
from vitrail.errors import UsageError


def place_of_temperature(path: Path) -> Path:
    """Where the temperature of a run's best checkpoint, or of a model folder, is kept: {"temperature": 1.3, ...}.

    Raises:
        UsageError: VT114, the model is a file, which nothing can be added to.
    """
    folder = resolve(path)
    if not folder.is_dir():
        raise UsageError(
            "VT114", f"{path} is a file, which a temperature cannot be added to", "a run folder or a model folder",
            f"vitrail convert {path} FOLDER, and then the same command on FOLDER",
        )  # fmt: skip
    return folder / CALIBRATION
