"""bfloat16 where no kernel knows it: every bfloat16 result is computed in float32 and rounded.

    with EmulatedBuilder("vision", contract, folder) as g:
        write_vision(Layers(g, read, BF16), config)

The same source then gives a graph that ONNX Runtime's CPU runs, whose error is that
of the real one before a GPU is touched: products on a GPU sum in float32 and round once, as here. Used for
comparing only; a bundle holds the real graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.export.builder import ONNX_TYPE, GraphBuilder, Value, stored_as

# They move values and make none, so what they give is rounded already.
_MOVES = {"Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "TensorScatter", "Transpose"}


class EmulatedBuilder(GraphBuilder):
    """A value labelled bfloat16 is float32 in the file, with bfloat16's 8 bits of precision."""

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
        return [self._rounded(value) if kind not in _MOVES else value for value in values]

    def cast(self, value: Value, dtype: DType) -> Value:
        if value.dtype is dtype:
            return value
        wide = Value(value.name, DType.FLOAT32) if value.dtype is DType.BFLOAT16 else value
        if dtype is DType.BFLOAT16:
            return self._rounded(Value(super().cast(wide, DType.FLOAT32).name, DType.BFLOAT16))
        return super().cast(wide, dtype)

    def constant(self, values: Any, dtype: DType = DType.INT64) -> Value:
        if dtype is not DType.BFLOAT16:
            return super().constant(values, dtype)
        rounded = stored_as(np.asarray(values), dtype).astype(np.float32)
        return Value(super().constant(rounded, DType.FLOAT32).name, dtype)

    def weight(self, name: str, array: npt.NDArray[Any]) -> Value:
        if array.dtype.name != DType.BFLOAT16.value:
            return super().weight(name, array)
        return Value(super().weight(name, array.astype(np.float32)).name, DType.BFLOAT16)

    def stored(self, name: str, dtype: DType) -> Value | None:
        """What the real graph stored, of which the file is shared: bfloat16 itself, widened here."""
        found = super().stored(name, dtype)
        if found is None or dtype is not DType.BFLOAT16:
            return found
        return super().ops("Cast", found, outputs=1, to=ONNX_TYPE[DType.FLOAT32])[0]

    def _rounded(self, value: Value) -> Value:
        """To bfloat16 and back, if it is labelled so."""
        if value.dtype is not DType.BFLOAT16:
            return value
        short, wide = (ONNX_TYPE[dtype] for dtype in (DType.BFLOAT16, DType.FLOAT32))
        (low,) = super().ops("Cast", value, outputs=1, dtype=DType.BFLOAT16, to=short)
        (back,) = super().ops("Cast", low, outputs=1, dtype=DType.BFLOAT16, to=wide)
        return back
