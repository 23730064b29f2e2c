"""The ways in which PyTorch answers: as the model is written, packed for a processor, or compiled. Each answers from a copy."""

from __future__ import annotations

import copy
import math
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.cores import threads
from vitrail.deployment.engines import Setting
from vitrail.deployment.packed import DTYPES, Precision, can_pack, packed
from vitrail.deployment.streams import Streams, threads_kept
from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone
from vitrail.model.mixers import AttentionModule

SAMPLED = 8  # values of an array
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SHARE = 3e10  # operations of each stream, below which its beginning costs more than it saves (docs/performance.md)
ALONE = 4  # images for each stream, from which on it does not matter that one has one image more


class Answerer(Protocol):
    """What a way makes of a backbone: normalised float32 images to float32 answers."""

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """What the last linear layer reads."""


class Way(Protocol):
    """Makes what answers, from the weights as they are now."""

    def __call__(self, backbone: Backbone) -> Answerer: ...


@dataclass(frozen=True)
class Packed:
    """By `packed`; batches are divided among `streams` of one core each.

    0 streams: one for each thread, where the batch is work enough; 0 threads: PyTorch's.
    """

    precision: Precision = "float32"
    streams: int = 0
    threads: int = 0

    def __call__(self, backbone: Backbone) -> Answerer:
        made: Answerer = packed(backbone, self.precision)
        most = self.threads or threads(torch.get_num_threads())
        count = min(self.streams or most, most)
        if count > 1 and can_pack(backbone):
            least = 1 if self.streams else math.ceil(SHARE / (2 * backbone.config.work.products))
            made = Divided(made, Streams(count), least)
        return _limited(made, most)


class Divided:
    """Batches go to the streams; what is no `least` images for each of them, or uneven, has all threads for itself."""

    def __init__(self, model: Answerer, streams: Streams, least: int = 1) -> None:
        self.model, self.streams, self.least = model, streams, least

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self._divided(self.model.forward, images)

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self._divided(self.model.represent, images)

    def _divided(self, answer: Any, images: Tensor) -> Tensor:
        count = self.streams.count
        even = len(images) % count == 0 or len(images) >= ALONE * count
        return self.streams.map(answer, images) if even and len(images) >= count * self.least else answer(images)


class Limited:
    """Answers with so many threads of PyTorch, and leaves the program its own."""

    def __init__(self, model: Answerer, count: int) -> None:
        self.model, self.count = model, count

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        with threads_kept():
            torch.set_num_threads(self.count)
            return self.model.forward(images)

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        with threads_kept():
            torch.set_num_threads(self.count)
            return self.model.represent(images)


def _limited(model: Answerer, count: int) -> Answerer:
    """With as many as the program has anyway it stays free to change them."""
    return model if count == torch.get_num_threads() else Limited(model, count)


@dataclass(frozen=True)
class Compiled:
    """By torch.compile, with the weights as constants; each size of batch is compiled when it first comes."""

    precision: Precision = "float32"
    threads: int = 0

    def __call__(self, backbone: Backbone) -> Answerer:
        if sys.platform != "win32" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise UsageError(
                "VT175", "the engine compiled needs a C++ compiler, and there is none", "g++ or clang++ on the PATH",
                "install one (Debian: apt install g++), or --engine pytorch, which is as fast on most processors",
            )  # fmt: skip
        made = CompiledModel(copy.deepcopy(backbone).eval().requires_grad_(False), DTYPES[self.precision])
        return _limited(made, self.threads or threads(torch.get_num_threads()))


class CompiledModel:
    """Weights in `dtype`, answers in float32."""

    def __init__(self, model: Backbone, dtype: torch.dtype) -> None:
        self.model, self.dtype = model.to(dtype), dtype
        options: dict[str, Any] = {"freezing": True}
        self._forward = torch.compile(self.model.forward, options=options)
        self._represent = torch.compile(self.model.represent, options=options)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self._forward(images.to(self.dtype)).float()

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self._represent(images.to(self.dtype)).float()


def way_of(engine: str, setting: Setting, device: str) -> Way | None:
    """How PyTorch is to answer; None: as the model is written.

    Raises:
        UsageError: VT169, a precision that PyTorch does not have here.
    """
    precision = "float32" if setting.precision == "auto" else setting.precision
    if precision not in DTYPES or (precision != "float32" and torch.device(device).type != "cpu"):
        raise UsageError(
            "VT169", f"{engine} with {precision} on {device}",
            f"{' or '.join(DTYPES)} on a processor, float32 elsewhere", "vitrail export RUN --to openvino --precision int8",
        )  # fmt: skip
    if torch.device(device).type != "cpu":
        return None
    known: Precision = "bfloat16" if precision == "bfloat16" and _multiplies_bfloat16() else "float32"
    return Compiled(known, setting.threads) if engine == "compiled" else Packed(known, setting.streams, setting.threads)


@cache  # so that it is said once
def _multiplies_bfloat16() -> bool:
    found = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu.get_capabilities().get("avx512_bf16", True)
    if not found:
        print("this processor has no bfloat16: float32 is used, which is as exact and slower", file=sys.stderr)
    return bool(found)


class Watched:
    """The copy that answers for a module, made anew when the module's weights have changed.

    PyTorch counts what is written into an array, so that optimizers, load_state_dict, LoRA and changes in place are seen.
    It does not count what is written through `parameter.data`: some values of every array are compared for that, so that
    only a change of a few values by that way is not seen. While somebody listens inside the module (hooks,
    capture, gates) or trains it, the module itself has to answer.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._made: tuple[list[tuple[int, int]], Answerer] | None = None
        self._samples: list[NDArray[Any]] = []
        self._seen = b""

    def answerer(self, module: Backbone) -> Answerer:
        """What answers for it now."""
        state = _state(module)
        if state is None:
            return module
        if self._made is None or self._made[0] != state or self._values() != self._seen:
            self._made = None  # first its memory goes
            self._samples = [_sample(values) for values in (*module.parameters(), *module.buffers())]
            self._seen = self._values()
            self._made = state, self._way(module)
        return self._made[1]

    def _values(self) -> bytes:
        return b"".join([sample.tobytes() for sample in self._samples])


def _sample(values: Tensor) -> NDArray[Any]:
    """Some of the values, as they will be whenever they are read."""
    flat = values.detach().contiguous().view(-1)
    return flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].view(_INTEGERS[flat.element_size()]).numpy()


def _state(module: nn.Module) -> list[tuple[int, int]] | None:
    """Where every array is and how often it was written to; None where somebody listens. One walk: it is done at every call."""
    found = []
    for part in module.modules():
        captured = isinstance(part, AttentionModule) and (part.request is not None or part.gates is not None)
        if captured or part.training or part._forward_hooks or part._forward_pre_hooks:
            return None
        for values in (*part._parameters.values(), *part._buffers.values()):
            if values is not None:
                found.append((values.data_ptr(), 0 if values.is_inference() else values._version))
    return found
