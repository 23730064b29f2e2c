"""A batch divided among cores: each answers for its share alone, so that none waits for the others at every product."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor


class Streams:
    """Threads of one core each, for operators of PyTorch, which let other threads of Python work meanwhile.

    PyTorch keeps the number of threads for each thread by itself; only the first setting of all is that of the program.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        threads, started = torch.get_num_threads(), threading.Barrier(count)

        def begin() -> None:
            torch.set_num_threads(1)
            started.wait()

        self._pool = ThreadPoolExecutor(count, "vitrail-stream", initializer=begin)
        for future in [self._pool.submit(int) for _ in range(count)]:
            future.result()
        torch.set_num_threads(threads)  # what the streams have set for themselves was told to the program too

    def map(
        self, answer: Callable[[Tensor], Tensor], images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out"]:
        """What `answer` gives, in the order of the images; without gradients."""
        return torch.cat(list(self._pool.map(lambda share: _answered(answer, share), images.tensor_split(self.count))))


def _answered(answer: Callable[[Tensor], Tensor], share: Tensor) -> Tensor:
    with torch.inference_mode():  # it is of the thread
        return answer(share)
