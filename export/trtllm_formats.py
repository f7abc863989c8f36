"""How TensorRT-LLM's engine backend stores a matrix [out, in]: plain, int4-AWQ, fp8 (facts/deployment, 4).

Each format plans its tensors and encodes one rank's part. Knows nothing about names or ranks.

Note [int8]
    There is no int8 format here: with `quant_algo` W8A16 `trtllm-build` rounds plain weights itself, per
    output row, into a layout that depends on the GPU. Weights that are int8 already it would take for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llamavid.calibrated import GraphCalibration
from llamavid.export.tensor_writer import Planned
from llamavid.formats.int4 import quantize_int4

FP8_LARGEST = 448.0  # of e4m3
INT8_LARGEST = 127.0


@dataclass(frozen=True)
class TrtllmScales:
    """What calibration measured, by TensorRT-LLM's names; what is left out is 1 throughout.

    Keys of the first three: `transformer.layers.N.` + `attention.qkv`, `attention.dense`, `mlp.fc` (also for
    `mlp.gate`, which reads the same), `mlp.proj`. Of the last: `transformer.layers.N.attention`.
    """

    prequant: Mapping[str, Tensor] = field(default_factory=dict)  # [in]: inputs are multiplied by it (AWQ)
    activation: Mapping[str, float] = field(default_factory=dict)  # the input's largest magnitude
    importance: Mapping[str, Tensor] = field(default_factory=dict)  # [in]: mean squares, for int4's clipping
    kv_cache: Mapping[str, float] = field(default_factory=dict)  # the largest key or value
    migrated: GraphCalibration | None = None  # its migrations go into the weights (fp8)


class Seen(NamedTuple):
    """What a part's encoding needs to know beyond the part."""

    largest: float  # magnitude in the whole matrix: ranks share one fp8 scale
    prequant: Tensor | None  # [in of the part]
    importance: Tensor | None  # [in of the part]
    activation: float | None


class WeightFormat(Protocol):
    """`planned` and `encoded` agree: suffix after the linear's name -> tensor."""

    def planned(self, rows: int, columns: int) -> dict[str, Planned]: ...

    def encoded(self, part: Tensor, seen: Seen) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Plain:
    dtype: torch.dtype

    def planned(self, rows: int, columns: int) -> dict[str, Planned]:
        return {".weight": Planned(self.dtype, (rows, columns))}

    def encoded(self, part: Tensor, seen: Seen) -> dict[str, Tensor]:
        return {".weight": part.to(self.dtype)}


@dataclass(frozen=True)
class Int4Awq:
    """Two rows a byte, the even one in the low nibble; `group` columns of a row share a scale."""

    dtype: torch.dtype
    group: int

    def planned(self, rows: int, columns: int) -> dict[str, Planned]:
        return {
            ".weight": Planned(torch.int8, (rows // 2, columns)),
            ".weights_scaling_factor": Planned(self.dtype, (rows, columns // self.group)),
            ".prequant_scaling_factor": Planned(self.dtype, (columns,)),
        }

    def encoded(self, part: Tensor, seen: Seen) -> dict[str, Tensor]:
        columns = part.shape[1]
        ones = torch.ones(columns)
        prequant = (ones if seen.prequant is None else seen.prequant).to(self.dtype)
        # The stored, rounded numbers are what the device multiplies with: levels are chosen for them.
        multiplied = part.float() / prequant.float()
        importance = None if seen.importance is None else seen.importance.numpy()
        chosen = quantize_int4(multiplied.T.numpy(), self.group, importance).scale.T
        scale, groups = (
            torch.from_numpy(chosen.copy()).to(self.dtype),
            multiplied.unflatten(1, (-1, self.group)),
        )
        scale[scale == 0] = 1  # too small for the dtype
        levels = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8).flatten(1)
        return {
            ".weight": (levels[0::2] & 0x0F) | (levels[1::2] << 4),
            ".weights_scaling_factor": scale,
            ".prequant_scaling_factor": prequant,
        }


@dataclass(frozen=True)
class Fp8:
    """e4m3, one scale for the matrix and one for its input."""

    def planned(self, rows: int, columns: int) -> dict[str, Planned]:
        return {
            ".weight": Planned(torch.float8_e4m3fn, (rows, columns)),
            ".weights_scaling_factor": Planned(torch.float32, (1,)),
            ".activation_scaling_factor": Planned(torch.float32, (1,)),
        }

    def encoded(self, part: Tensor, seen: Seen) -> dict[str, Tensor]:
        scale = seen.largest / FP8_LARGEST or 1.0
        levels = (part.float() / scale).clamp(-FP8_LARGEST, FP8_LARGEST)
        activation = 1.0 if seen.activation is None else seen.activation / FP8_LARGEST
        return {
            ".weight": levels.to(torch.float8_e4m3fn),
            ".weights_scaling_factor": torch.tensor([scale]),
            ".activation_scaling_factor": torch.tensor([activation]),
        }
