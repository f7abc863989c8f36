"""Half precision as a GPU computes it: every float16 or bfloat16 result is computed in float32 and rounded.

    write_frame_graphs(checkpoint, folder, types, builder=EmulatedBuilder)

ONNX Runtime's CPU has no bfloat16 at all, and of float16 it leaves the roundings out: it multiplies in
float32 and drops the casts between, so that a sum past 65504, which is inf on a GPU, goes unnoticed. The
same source written by this builder rounds every result, sums products in float32 and rounds once, as a GPU
does, and so tells a graph's error before one is touched. Used for comparing only; a bundle holds the real
graphs. Boundaries are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.export.builder import ONNX_TYPE, GraphBuilder, Value, stored_as

_HALVES = (DType.FLOAT16, DType.BFLOAT16)
# They move values and make none, so what they give is rounded already; or they give levels.
_EXACT = {"Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Transpose"}
_EXACT |= {"QuantizeLinear", "TensorScatter"}


class EmulatedBuilder(GraphBuilder):
    """A value labelled float16 or bfloat16 is float32 in the file, rounded to that type's numbers."""

    emulates = True

    def ops(
        self,
        kind: str,
        *inputs: Value | None,
        outputs: int,
        dtype: DType | None = None,
        domain: str = "",
        results: list[str] | None = None,
        **attributes: Any,
    ) -> list[Value]:
        values = super().ops(
            kind, *inputs, outputs=outputs, dtype=dtype, domain=domain, results=results, **attributes
        )
        return [self._rounded(value) if kind not in _EXACT else value for value in values]

    def cast(self, value: Value, dtype: DType) -> Value:
        if value.dtype is dtype:
            return value
        wide = Value(value.name, DType.FLOAT32) if value.dtype in _HALVES else value
        if dtype in _HALVES:
            return self._rounded(Value(super().cast(wide, DType.FLOAT32).name, dtype))
        return super().cast(wide, dtype)

    def constant(self, values: Any, dtype: DType = DType.INT64) -> Value:
        if dtype not in _HALVES:
            return super().constant(values, dtype)
        rounded = stored_as(np.asarray(values), dtype).astype(np.float32)
        return Value(super().constant(rounded, DType.FLOAT32).name, dtype)

    def weight(self, name: str, array: npt.NDArray[Any]) -> Value:
        dtype = DType(array.dtype.name)
        if dtype not in _HALVES:
            return super().weight(name, array)
        return Value(super().weight(name, array.astype(np.float32)).name, dtype)

    def stored(self, name: str, dtype: DType) -> Value | None:
        """What the real graph stored, of which the file is shared: the half itself, widened here."""
        found = super().stored(name, dtype)
        if found is None or dtype not in _HALVES:
            return found
        return super().ops("Cast", found, outputs=1, to=ONNX_TYPE[DType.FLOAT32])[0]

    def _rounded(self, value: Value) -> Value:
        """To its type and back, if that is a half."""
        if value.dtype not in _HALVES:
            return value
        short, wide = ONNX_TYPE[value.dtype], ONNX_TYPE[DType.FLOAT32]
        (low,) = super().ops("Cast", value, outputs=1, dtype=value.dtype, to=short)
        (back,) = super().ops("Cast", low, outputs=1, dtype=value.dtype, to=wide)
        return back
