"""The software GPU's memory: every access is inside a live block, or it is an illegal address."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

ALIGNMENT, GUARD = 256, 512  # bytes
POISON, FENCE = 0xFF, 0xA5  # 0xFF everywhere is no number in every float type


class IllegalAccessError(Exception):
    """An access outside of every block, or a fence that was written over."""


@dataclass
class Block:
    address: int
    size: int
    memory: Any  # keeps it alive
    pinned: bool


class Memory:
    """Blocks on the device and, pinned, on the host."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.live_bytes = self.peak_bytes = 0  # of the device
        self.allocations = 0
        self._blocks: dict[int, Block] = {}
        self._starts: list[int] = []
        self._buried: list[Any] = []  # pinned memory that is freed: a view of it must read poison, not crash

    @property
    def live(self) -> int:
        """Blocks, of both kinds."""
        return len(self._blocks)

    def allocate(self, size: int, *, pinned: bool) -> int | None:
        if not pinned and self.live_bytes + size > self.total_bytes:
            return None
        memory = (ctypes.c_uint8 * (size + 2 * GUARD + ALIGNMENT))()
        address = -(-(ctypes.addressof(memory) + GUARD) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(address - GUARD, FENCE, size + 2 * GUARD)
        ctypes.memset(address, POISON, size)
        self._blocks[address] = Block(address, size, memory, pinned)
        self._starts = sorted(self._blocks)
        if not pinned:
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.allocations += 1
        return address

    def free(self, address: int, *, pinned: bool) -> bool:
        block = self._blocks.get(address)
        if block is None or block.pinned is not pinned:
            return False
        for fence in (address - GUARD, address + block.size):
            if set(ctypes.string_at(fence, GUARD)) != {FENCE}:
                raise IllegalAccessError(f"something wrote beside a block of {block.size} bytes")
        ctypes.memset(address, POISON, block.size)
        del self._blocks[address]
        self._starts = sorted(self._blocks)
        if pinned:
            self._buried.append(block.memory)
        else:
            self.live_bytes -= block.size
        return True

    def is_host(self, address: int) -> bool:
        block = self._block(address)
        return block is None or block.pinned

    def bytes(self, address: int, size: int) -> np.ndarray:
        """uint8 [size], writable. What is in no block is taken for the host's pageable memory near none."""
        block = self._block(address)
        if block is None or address + size > block.address + block.size:
            raise IllegalAccessError(f"{size} bytes at {address:#x}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _block(self, address: int) -> Block | None:
        at = bisect_right(self._starts, address)
        block = self._blocks[self._starts[at - 1]] if at else None
        return block if block and address < block.address + block.size else None
