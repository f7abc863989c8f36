"""One engine behind the protocol of `llamavid.runtime.executors`: arrays in, arrays out.

For verifying and for what is on the host anyway. The stages that follow each other on the GPU use
`llamavid.runtime.tensorrt.frames` and `.language`, where nothing comes back to the host in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import TensorSpec
from llamavid.runtime.executors import Tensors
from llamavid.runtime.tensorrt.buffers import Buffer, DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Stream
from llamavid.runtime.tensorrt.engine import Context, Engine, size_of


class TensorRtExecutor:
    """One profile of one engine. One thread may run it at a time. Buffers grow to the largest run's."""

    def __init__(
        self, cuda: Cuda, engine: Engine, profile: str, *, in_place: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        in_place: outputs that are written over an input, by name.
        """
        self._cuda, self._contract = cuda, engine.contract
        self._stage = engine.stage
        self._in_place = dict(in_place or {})
        self._stream = Stream(cuda)
        self._buffers: dict[str, DeviceBuffer] = {}
        self._staging: dict[str, PinnedBuffer] = {}
        self._context: Context = engine.context(profile)

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Inputs by the contract's names -> outputs by the contract's names.

        Raises:
            DeviceError: a shape is outside the profile, memory does not suffice, or the GPU fails.
        """
        arrays = {spec.name: _checked(spec, inputs[spec.name]) for spec in self._contract.inputs}
        self._context.set_shapes({name: array.shape for name, array in arrays.items()})
        shapes = {spec.name: self._context.shape(spec.name) for spec in self._contract.outputs}
        for spec in (*self._contract.inputs, *self._contract.outputs):
            shape = arrays[spec.name].shape if spec.name in arrays else shapes[spec.name]
            self._make_room(self._place(spec.name), size_of(spec, shape))
        for name, array in arrays.items():
            self._staging[name].view(array.dtype, array.shape)[...] = array
            self._stream.copy(self._buffers[name].address, self._staging[name].address, array.nbytes)
        specs = (*self._contract.inputs, *self._contract.outputs)
        self._context.set_addresses({s.name: self._buffers[self._place(s.name)].address for s in specs})
        self._context.enqueue(self._stream)
        for spec in self._contract.outputs:
            size, place = size_of(spec, shapes[spec.name]), self._place(spec.name)
            self._stream.copy(self._staging[place].address, self._buffers[place].address, size)
        self._stream.synchronize()
        return {
            spec.name: self._staging[self._place(spec.name)].view(spec.dtype.numpy, shapes[spec.name]).copy()
            for spec in self._contract.outputs
        }

    def close(self) -> None:
        self._stream.close()
        self._context.close()
        buffers: list[Buffer] = [*self._buffers.values(), *self._staging.values()]
        for buffer in buffers:
            buffer.close()

    def _place(self, name: str) -> str:
        """Whose memory the tensor has."""
        return self._in_place.get(name, name)

    def _make_room(self, name: str, size: int) -> None:
        if name in self._buffers and self._buffers[name].size >= size:
            return
        for held in (self._buffers.pop(name, None), self._staging.pop(name, None)):
            if held is not None:
                held.close()
        self._buffers[name] = DeviceBuffer(self._cuda, size, f"{name} of engine {self._stage}")
        self._staging[name] = PinnedBuffer(self._cuda, size)


def _checked(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A mismatch is our own mistake."""
    assert array.dtype == spec.dtype.numpy, f"{spec.name} is {array.dtype}, not {spec.dtype.value}"
    return np.ascontiguousarray(array)
