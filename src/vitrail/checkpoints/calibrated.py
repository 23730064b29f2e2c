"""The temperature that a model's logits are divided by before they become probabilities, beside its weights.

Folders of every format keep it in calibration.json, which no other program reads; files that Vitrail wrote keep it with
the rest of what is no array (extras.py). The weights stay as they are, and so do the hashes of a saved state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.checkpoints.containers import CALIBRATION
from vitrail.checkpoints.loading import resolve
from vitrail.errors import UsageError
from vitrail.files import write_json


def store_temperature(path: Path, temperature: float, facts: Mapping[str, Any]) -> Path:
    """Writes it beside the weights of a run folder's best checkpoint, or of a model folder; what was there is replaced.

    Args:
        facts: where it comes from, for people.

    Raises:
        UsageError: VT114, the model is a file, which has no room.
    """
    folder = resolve(path)
    if not folder.is_dir():
        raise UsageError(
            "VT114", f"{path} is a file, which a temperature cannot be added to", "a run folder or a model folder",
            f"vitrail convert {path} FOLDER, and then the same command on FOLDER",
        )  # fmt: skip
    write_json(folder / CALIBRATION, {"temperature": temperature, **facts})
    return folder / CALIBRATION
