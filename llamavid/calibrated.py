"""scales.json together with its vectors, and what they do to a weight when it is loaded.

    calibration = load_calibration(folder / "scales.json")
    vision = calibration.graph("vision")
    vision.migrated("blocks.3.attn.qkv.weight", weight)     the weight that is rounded
    vision.restored("blocks.3.attn.qkv.weight", rounded)    what it stands for in the model as it was

Both sides of an export use it: the graphs get migrated weights, the PyTorch reference the restored ones.
Knows no format's grid and no model; a tensor is known by the name that graphs give it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamavid.errors import ScalesError
from llamavid.replacing import replacing
from llamavid.scales import AGAIN, GraphScales, Migration, Scales, load_scales

Array = npt.NDArray[np.float32]

VECTORS = "scales.npz"  # beside scales.json
_SIZE_LIMIT = 256 << 20  # bytes; a 13B model's are some 10 MB
_LONGEST = 1 << 20  # channels


@dataclass(frozen=True)
class GraphCalibration:
    """Of one graph."""

    scales: GraphScales
    vectors: Mapping[str, Array]

    def migrated(self, name: str, tensor: Array) -> Array:
        """A tensor [...] of the checkpoint with the migrations applied; others come back as they are."""
        return self._changed(name, tensor, inverse=False)

    def restored(self, name: str, tensor: Array) -> Array:
        """The inverse."""
        return self._changed(name, tensor, inverse=True)

    def input_divisor(self, module: str) -> Array | None:
        """[K]: what the module's input is divided by; None: nothing."""
        for migration in self.scales.migrations:
            if module in migration.multiplied:
                return self.vectors[migration.vector]
        return None

    def importance(self, module: str) -> Array | None:
        """[K]: mean square of each channel of the migrated input; None: not measured."""
        vector = self.scales.importance.get(module)
        return None if vector is None else self.vectors[vector]

    def _changed(self, name: str, tensor: Array, *, inverse: bool) -> Array:
        for migration in self.scales.migrations:
            vector = self.vectors[migration.vector]
            if name.removesuffix(".weight") in migration.multiplied and name.endswith(".weight"):
                _require_length(name, tensor.shape[-1], vector)
                tensor = tensor / vector if inverse else tensor * vector
            tensor = _divided(name, tensor, migration, vector, inverse=inverse)
        return tensor


@dataclass(frozen=True)
class Calibration:
    """The whole of it."""

    scales: Scales
    vectors: Mapping[str, Array]  # by name, float32 [K]

    def graph(self, name: str) -> GraphCalibration | None:
        """None: nothing was decided about that graph."""
        found = self.scales.graphs.get(name)
        return GraphCalibration(found, self.vectors) if found else None


def load_calibration(file: Path) -> Calibration:
    """Reads scales.json and, beside it, the vectors that it names.

    Raises:
        ScalesError: either is missing or damaged, or they do not belong together.
    """
    scales = load_scales(file)
    vectors = _read_vectors(file.parent / VECTORS, scales.vectors) if scales.vectors else {}
    for graph, found in scales.graphs.items():
        for name in (*(one.vector for one in found.migrations), *found.importance.values()):
            if name not in vectors:
                raise ScalesError(f"{file}: {graph} names {name!r:.80}, which is no vector", next_step=AGAIN)
        for migration in found.migrations:
            if not (vectors[migration.vector] > 0).all():
                raise ScalesError(f"{file}: {migration.vector} is not above 0 throughout", next_step=AGAIN)
        for name in found.importance.values():
            if not (vectors[name] >= 0).all():
                raise ScalesError(f"{file}: {name} is not 0 or above throughout", next_step=AGAIN)
    return Calibration(scales, vectors)


def save_calibration(calibration: Calibration, file: Path) -> Calibration:
    """Writes both, vectors first, beside and renamed; gives it back with the vectors' sha256 filled in.

    The same numbers give the same bytes.

    Raises:
        ScalesError: the place cannot be written.
    """
    packed = _packed(calibration.vectors) if calibration.vectors else b""
    digest = hashlib.sha256(packed).hexdigest() if packed else ""
    saved = replace(calibration, scales=replace(calibration.scales, vectors=digest))
    try:
        if packed:
            with replacing(file.parent / VECTORS) as beside:
                beside.write_bytes(packed)
        with replacing(file) as beside:
            beside.write_text(saved.scales.to_json(), encoding="utf-8")
    except OSError as error:
        raise ScalesError(
            f"{file} cannot be written ({error.strerror})", next_step="Choose another place."
        ) from error
    return saved


def _divided(name: str, tensor: Array, migration: Migration, vector: Array, *, inverse: bool) -> Array:
    """Rows (the first axis) from a migration's first one on, as many as its vector is long."""
    for divided in migration.divided:
        if divided.name == name:
            _require_length(name, len(tensor) - divided.first_row, vector)
            tensor = tensor.copy()
            factor = vector if inverse else 1 / vector
            tensor[divided.first_row :] *= factor.reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor


def _require_length(name: str, length: int, vector: Array) -> None:
    if length != len(vector):
        raise ScalesError(
            f"a migration of {name} has {len(vector)} channels", expected=f"{length}", next_step=AGAIN
        )


def _packed(vectors: Mapping[str, Array]) -> bytes:
    """The archive that NumPy reads, without the times that `np.savez` would put in."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(vectors):
            array = io.BytesIO()
            np.lib.format.write_array(array, np.ascontiguousarray(vectors[name], np.float32))
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())
    return buffer.getvalue()


def _read_vectors(file: Path, digest: str) -> dict[str, Array]:
    try:
        size = file.stat().st_size
        if size > _SIZE_LIMIT:
            raise ScalesError(f"{file} has {size} bytes", expected=f"at most {_SIZE_LIMIT}", next_step=AGAIN)
        packed = file.read_bytes()
    except OSError as error:
        raise ScalesError(
            f"{file} cannot be read ({error.strerror})",
            expected="the vectors that scales.json names",
            next_step=f"Copy {VECTORS} with scales.json. {AGAIN}",
        ) from error
    if hashlib.sha256(packed).hexdigest() != digest:
        raise ScalesError(f"{file} is not the one that scales.json names (its sha256)", next_step=AGAIN)
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _SIZE_LIMIT:
                raise ValueError("unpacked it is too large")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            return {name: _checked(name, arrays[name]) for name in arrays.files}
    except (ValueError, OSError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ScalesError(f"{file} is damaged ({error})", next_step=AGAIN) from error


def _checked(name: str, vector: npt.NDArray[np.generic]) -> Array:
    if vector.dtype != np.float32 or vector.ndim != 1 or not 0 < len(vector) <= _LONGEST:
        raise ValueError(f"{name} is {vector.dtype} {list(vector.shape)}, not a vector of float32")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} holds what is no number")
    return np.asarray(vector, np.float32)
