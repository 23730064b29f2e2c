"""A Predictor without torch: an engine, preprocessing and labels, from an exported file or a model exported in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment import machine
from vitrail.deployment.engines import ENGINES, Purpose, Session, Setting, reading
from vitrail.deployment.onnx_file import OnnxFile, read_onnx
from vitrail.deployment.passport import NORMALISATION, Passport, Precision, damaged
from vitrail.deployment.predicting import PicturePredictor, finite
from vitrail.errors import UsageError, VitrailError
from vitrail.preprocessing import Preprocessing

if TYPE_CHECKING:
    from vitrail.deployment.openvino_file import OpenvinoFile

SUFFIXES = {".onnx": "onnx", ".openvino": "openvino"}
FEW, MANY = 4, 32  # images at once, and images in all, up to which a model is open for a first answer


class Exported(PicturePredictor):
    """An exported model in an engine.

    It is opened for a first answer while it is asked for one picture and another, and for throughput when it is asked for
    many. The arithmetic is the same in another order: logits differ by rounding.

    Attributes:
        passport: what the file says of itself.
        engine: the name of the engine.
    """

    def __init__(
        self, passport: Passport, engine: str, size: tuple[int, int], setting: Setting,
        open_session: Callable[[Setting], Session], unchanged: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self.passport, self.engine, self.setting = passport, engine, setting
        self._preprocessing = replace(passport.preprocessing, image_size=size)
        self._open, self._unchanged = open_session, unchanged
        self._session: Session | None = None
        self._purpose: Purpose = "first-answer"
        self._seen, self._lock = 0, Lock()

    @property
    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        return self.passport.classes

    @property
    def multi_label(self) -> bool:
        return self.passport.multi_label

    @property
    def temperature(self) -> float:
        return self.passport.temperature

    @property
    def precision(self) -> str:
        """What was asked for, or the file's own; once it has answered, float32 where the processor has no bfloat16."""
        wanted = self.passport.precision if self.setting.precision == "auto" else self.setting.precision
        return self._session.computes if wanted == "bfloat16" and self._session is not None else wanted

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        channels, (height, width) = self.preprocessing.channels, self.preprocessing.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (channels, height, width):
            raise UsageError(
                "VT171", f"images of shape {images.shape} and type {images.dtype}",
                f"uint8, batch {channels} {height} {width}", "model.preprocessing(picture) gives one of them",
            )  # fmt: skip
        inside = NORMALISATION in self.passport.inside
        logits = self.session(len(images)).run(images if inside else self.preprocessing.normalise(images))
        if logits.shape != (len(images), len(self.classes)):
            raise damaged(
                "the model", f"it answers {len(images)} images by {logits.shape}, for {len(self.classes)} classes"
            )
        return finite(logits)

    def represent(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Refused: VT170."""
        raise UsageError(
            "VT170", f"an exported model gives logits alone; {self.engine} cannot look at its features",
            "the run or the weights that it was made from", "vitrail embed RUN FILES... --out FEATURES.npy",
        )  # fmt: skip

    def session(self, count: int) -> Session:
        """The open engine, for so many more images."""
        with self._lock:
            self._seen += count
            many = count > FEW or self._seen > MANY
            wanted: Purpose = self.setting.purpose or ("throughput" if many else "first-answer")
            if self._session is not None and (wanted, self._purpose) == ("throughput", "first-answer"):
                if self._unchanged():
                    self._session = None  # it is forgotten first, or both would be in memory
                else:
                    print("the file of a model was replaced: what was loaded goes on", file=sys.stderr)
                    self._purpose = "throughput"
            if self._session is None:
                # Who comes one by one is alone on all cores.
                streams = self.setting.streams or (0 if count > FEW else 1)
                self._session = self._open(replace(self.setting, purpose=wanted, streams=streams))
                self._purpose = wanted
            return self._session


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path is called as an exported file that Vitrail opens."""
    return Path(path).suffix.lower() in SUFFIXES and not os.path.isdir(path)


def inner_needed(path: str | os.PathLike[str]) -> UsageError:
    """For what looks inside a model."""
    return UsageError(
        "VT174", f"{path} is an exported model, and this needs the weights themselves: features, gradients or attention",
        "the run, model folder or file of weights that it was made from",
    )  # fmt: skip


def open_exported(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    engine: str = "auto",
    setting: Setting = Setting(),
) -> Exported:
    """Opens a file that `vitrail export` wrote.

    Args:
        path: an .onnx or .openvino file.
        image_size: (height, width), one of those that the file holds; None is its own.
        engine: "auto", "onnxruntime" or "openvino", which reads both kinds.
        setting: how the engine is to work.

    Raises:
        VitrailError: VT078, there is no such file; VT160 to VT164, it is damaged, newer, foreign or somebody else's.
        UsageError: VT165 to VT169, the engine; VT172, the file does not hold this size.
    """
    if not os.path.isfile(path):
        raise VitrailError("VT078", f"{path} does not exist", "a file that `vitrail export` wrote")
    chosen = reading(SUFFIXES[Path(path).suffix.lower()], engine)
    if not chosen.installed:  # before the file is read, which takes longer
        raise chosen.missing()
    file = _read(path)
    passport, size = file.passport, held(file.passport, image_size, os.fspath(path))
    chosen = reading(passport.target, engine, passport.precision, setting.precision)
    key, precision = machine.key_of_file(passport.hash, size), passport.precision
    if setting.precision != "auto":
        precision = cast(Precision, setting.precision)
    if engine == "auto":  # what `vitrail bench` found to be better here
        there = [each.name for each in ENGINES.values() if passport.target in each.reads and each.installed]
        chosen = ENGINES[machine.engine_for(key, setting, precision, there) or chosen.name]
    home, name = chosen.module(), chosen.name

    def opened(asked: Setting) -> Session:
        session: Session = home.open_session(file, size, machine.advised(key, name, asked, precision))
        return session

    return Exported(
        passport, name, size, setting, opened, file.unchanged if isinstance(file, OnnxFile) else lambda: True
    )


def _read(path: str | os.PathLike[str]) -> OnnxFile | OpenvinoFile:
    if Path(path).suffix.lower() == ".onnx":
        return read_onnx(path)
    from vitrail.deployment.openvino_file import read_openvino

    return read_openvino(path)


def held(passport: Passport, image_size: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """The size that is asked for, if the file holds it; its own where none is."""
    size = image_size or passport.sizes[0]
    if size not in passport.sizes:
        sizes = ", ".join(f"{height}x{width}" for height, width in passport.sizes)
        raise UsageError(
            "VT172", f"{name} does not hold the size {size[0]}x{size[1]}", f"one of those that it holds: {sizes}",
            f"vitrail export RUN --image-size {size[0]}x{size[1]} makes a file that does",
        )  # fmt: skip
    return size
