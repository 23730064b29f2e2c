"""A batch divided among cores: each answers for its share alone, so that none waits for the others at every product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor


class Streams:
    """Threads of one core each, for operators of PyTorch, which let other threads of Python work meanwhile.

    They end with the batch: while they lived, libgomp would take the processor for overbooked and put threads to sleep
    between any two products of others, which doubles the time of a small model (docs/performance.md).
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def map(
        self, answer: Callable[[Tensor], Tensor], images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out"]:
        """What `answer` gives, in the order of the images; without gradients."""
        with (
            threads_kept(),
            ThreadPoolExecutor(self.count, "vitrail-stream", partial(torch.set_num_threads, 1)) as pool,
        ):
            shares = images.tensor_split(self.count)
            return torch.cat(list(pool.map(lambda share: _answered(answer, share), shares)))


@contextmanager
def threads_kept() -> Iterator[None]:
    """Gives the program the threads of PyTorch back that it had: each thread has a number, and the last one set is all's."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _answered(answer: Callable[[Tensor], Tensor], share: Tensor) -> Tensor:
    with torch.inference_mode():  # it is of the thread
        return answer(share)
