"""A piece of work as one CUDA graph: handed to the GPU once, then launched whole.

    encode = captured(lambda: encoder(pixels))
    encode.replay()          # of what lies in `pixels` now; the result lies in `encode.result`

What it reads must stay where it is, and its result is overwritten by the next replay. Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_WARM_UP = 3  # runs before: what is compiled or chosen by measurement must be so before the capture


@dataclass(frozen=True)
class Captured(Generic[T]):
    """Of one capture."""

    graph: torch.cuda.CUDAGraph
    result: T

    def replay(self) -> T:
        self.graph.replay()
        return self.result


def has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def captured(run: Callable[[], T]) -> Captured[T]:
    """`run` on the current device, in inference mode; it reads and writes memory that stays.

    Raises:
        RuntimeError: it does what cannot be captured (waits for the GPU, allocates elsewhere).
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        result = run()
    return Captured(graph, result)
