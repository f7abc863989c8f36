"""What calibration has seen of the inputs of products, and its form in an npz.

    seen = Seen(("q_proj", "k_proj"), histogram, channels, sample, divisor=None, rows=1)
    pack_seen([seen], cached) -> arrays         unpack_seen(arrays, readers), unpack_cached(arrays)

Knows nothing about how it was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.calibration.histogram import ChannelStatistics, Histogram
from llamavid.errors import ScalesError

SAMPLE_ROWS = 128  # kept of every input: 2 MB at 4,096 channels

Array = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Observed:
    """What enters one product.

    Args:
        graph, module: which.
        histogram: of magnitudes, as they are rounded: after migration (int8, fp8). int4 rounds weights
            alone: magnitudes as the model has them.
        channels: of the input as the model has it, before migration: outliers are seen here.
        sample: float32 [<= 128, K], rows by chance, before migration.
        divisor: float32 [K], all above 0, that migration divides the input by; None: nothing.
        rows: how many of them come from one frame (and question); of the language model 1, a token.
    """

    graph: str
    module: str
    histogram: Histogram
    channels: ChannelStatistics
    sample: Array
    divisor: Array | None
    rows: int

    @property
    def migrated_sample(self) -> Array:
        """float32 [<= 128, K], as the graph has them."""
        return self.sample if self.divisor is None else self.sample / self.divisor

    @property
    def importance(self) -> Array:
        """float32 [K], mean square of each channel after migration."""
        square = self.channels.mean_square
        return (square if self.divisor is None else square / self.divisor.astype(np.float64) ** 2).astype(
            np.float32
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """The same of one tensor, for all that read it."""

    readers: tuple[str, ...]
    histogram: Histogram
    channels: ChannelStatistics
    sample: Array
    divisor: Array | None
    rows: int

    @property
    def name(self) -> str:
        """As `Input.name`."""
        return self.readers[0]

    def observed(self, graph: str) -> dict[str, Observed]:
        """By reader."""
        same = (self.histogram, self.channels, self.sample, self.divisor, self.rows)
        return {reader: Observed(graph, reader, *same) for reader in self.readers}


@dataclass(frozen=True, eq=False)
class Cached:
    """What a language model keeps of tokens, in one attention.

    Args:
        key: largest norm of a pair that rotates together.
        values: float32 [K], largest magnitude of each channel.
    """

    key: float
    values: Array

    def largest(self, divisor: Array | None = None) -> float:
        """Magnitude of a key or value; with what migration divides values by, of the migrated model."""
        return max(self.key, self.largest_value(divisor))

    def largest_value(self, divisor: Array | None = None) -> float:
        """Magnitude of a value; of the migrated model too."""
        return float((self.values if divisor is None else self.values / divisor).max())


def pack_seen(seen: Sequence[Seen], cached: Mapping[str, Cached]) -> Arrays:
    """For an npz: `INPUT/histogram/counts`, `key/model.layers.0.self_attn`."""
    arrays: Arrays = {f"key/{name}": np.array([one.key], np.float64) for name, one in cached.items()}
    arrays |= {f"values/{name}": one.values for name, one in cached.items()}
    for one in seen:
        parts: dict[str, npt.NDArray[Any]] = {
            **{f"histogram/{name}": array for name, array in one.histogram.to_arrays().items()},
            **{f"channels/{name}": array for name, array in one.channels.to_arrays().items()},
            "sample": one.sample,
            "rows": np.array([one.rows], np.int64),
        }
        if one.divisor is not None:
            parts["divisor"] = one.divisor
        arrays |= {f"{one.name}/{name}": array for name, array in parts.items()}
    return arrays


def unpack_seen(arrays: Mapping[str, npt.NDArray[Any]], inputs: Sequence[tuple[str, ...]]) -> list[Seen]:
    """What `pack_seen` packed, of inputs with those readers.

    Raises:
        ScalesError: something is missing or damaged.
    """
    return [_unpacked(_under(arrays, f"{readers[0]}/"), readers) for readers in inputs]


def unpack_cached(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Cached]:
    """By attention. Raises `ScalesError` where something is missing or damaged."""
    keys, values = _under(arrays, "key/"), _under(arrays, "values/")
    if keys.keys() != values.keys():
        raise ScalesError("what was seen of caches is damaged")
    return {name: _unpacked_cached(name, key, values[name]) for name, key in keys.items()}


def pack_prompts(prompts: Sequence[Array]) -> Arrays:
    """Beside what was seen."""
    return {f"prompts/{index:06}": prompt for index, prompt in enumerate(prompts)}


def unpack_prompts(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Array, ...]:
    """What `pack_prompts` packed."""
    return tuple(prompt for _, prompt in sorted(_under(arrays, "prompts/").items()))


def _unpacked_cached(name: str, key: npt.NDArray[Any], values: npt.NDArray[Any]) -> Cached:
    sound = (key.dtype, key.shape, values.dtype, values.ndim) == (np.float64, (1,), np.float32, 1)
    if not (sound and all(len(one) and np.isfinite(one).all() and (one >= 0).all() for one in (key, values))):
        raise ScalesError(f"what was seen of the cache of {name} is damaged")
    return Cached(float(key[0]), values)


def _unpacked(arrays: Arrays, readers: tuple[str, ...]) -> Seen:
    try:
        channels = ChannelStatistics.from_arrays(_under(arrays, "channels/"))
        sample, divisor = arrays["sample"], arrays.get("divisor")
        width = len(channels.largest)
        sound = sample.dtype == np.float32 and 0 < len(sample) <= SAMPLE_ROWS and sample.shape[1:] == (width,)
        if divisor is not None:
            sound = sound and divisor.dtype == np.float32 and divisor.shape == (width,)
            sound = sound and bool((divisor > 0).all()) and bool(np.isfinite(divisor).all())
        if not sound:
            raise ScalesError(f"what was seen of {readers[0]} is damaged")
        histogram = Histogram.from_arrays(_under(arrays, "histogram/"))
        return Seen(readers, histogram, channels, sample, divisor, int(arrays["rows"][0]))
    except (KeyError, IndexError) as error:
        raise ScalesError(f"what was seen of {readers[0]} is damaged ({error})") from error


def _under(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
