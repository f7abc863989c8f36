"""Golden inputs: what PyTorch made of a few frames, one question and one sequence, stage by stage.

A device has no PyTorch, so export writes them into the bundle, and `verify` compares there. The file is a
plain .npz, read here without pickles and without believing its headers.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import Bundle
from llamavid.config import ModelConfig
from llamavid.errors import BundleError

GOLDEN = "golden.npz"
MAX_BYTES = 1 << 28  # of all arrays; EVA-g and a 13B model take 8 MB

# What Python's zipfile and NumPy raise of damaged files.
_UNREADABLE = (
    *(ValueError, KeyError, EOFError, OSError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, struct.error),
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs, and what PyTorch makes of them in float32. n frames, all different.

    Where a graph's weights are quantized, its outputs here are of the same quantized weights: what is left of
    the difference is the computation's. The other stages' inputs are always those of the exact weights.
    """

    pixels: Floats  # [n, 3, S, S]
    encoded: Floats  # [n, 1+N, C], of the vision stage
    features: Floats  # [n, 1+N, C], input of the two stages that follow
    content_tokens: Floats  # [n, k, D]
    question_ids: npt.NDArray[np.int64]  # [1, L]
    context_tokens: Floats  # [n, 1, D]
    attention: Floats  # [n, N]
    relevance: Floats  # [n]
    sequence: Floats  # [1, T, D], embeddings
    chunks: npt.NDArray[np.int64]  # [c], tokens a run; T in all; the last ones are decode steps of 1
    logits: Floats  # [c, V], after each chunk

    def output(self, stage: str, name: str) -> Floats:
        """What a frame stage's output of that name is compared with."""
        array: Floats = self.encoded if stage == "vision" else getattr(self, name)
        return array


NAMES = tuple(field.name for field in dataclasses.fields(Golden))


def write_golden(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes the fields of `Golden`, by name."""
    assert set(arrays) == set(NAMES), set(NAMES) ^ set(arrays)
    with file.open("wb") as stream:  # np.savez alone would add a suffix
        np.savez(stream, **{name: arrays[name] for name in NAMES})  # type: ignore[arg-type]


def read_golden(bundle: Bundle) -> Golden:
    """The bundle's. Raises `BundleError` where it has none, or they do not fit its model."""
    if GOLDEN not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder} has no golden inputs: it was made before engines were compared with them",
            next_step="Make it again with `llamavid export`.",
        )
    file = bundle.path(GOLDEN)
    try:
        return _checked(_arrays(file), bundle.manifest.model)
    except _UNREADABLE as error:
        raise BundleError(
            f"{file} holds no golden inputs ({error})",
            next_step="Make the bundle again with `llamavid export`.",
        ) from error


def _arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Raises `ValueError`, or what `zipfile` does of a damaged file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = sorted(member.filename for member in members)
        if names != sorted(f"{name}.npy" for name in NAMES):
            raise ValueError(f"it has {', '.join(names)}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(data: bytes) -> npt.NDArray[Any]:
    """Of an .npy file's bytes. NumPy itself makes room for what the header says before it reads on."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if in_columns or dtype not in (np.dtype("<f4"), np.dtype("<i8")):
        raise ValueError(f"an array of {dtype}")
    if any(size < 1 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)


def _checked(arrays: dict[str, npt.NDArray[Any]], model: ModelConfig) -> Golden:
    """Raises `ValueError` for an array of another type or shape than the model's, or that is no number."""
    golden = Golden(**arrays)
    vision, language = model.vision, model.language
    n, tokens, runs = len(golden.pixels), golden.sequence.shape[-2:-1], len(golden.chunks)
    wanted: dict[str, tuple[int, ...]] = {
        "pixels": (n, 3, vision.image_size, vision.image_size),
        "encoded": (n, 1 + vision.patches, vision.width),
        "features": (n, 1 + vision.patches, vision.width),
        "content_tokens": (n, model.content_tokens, language.hidden),
        "question_ids": (1, golden.question_ids.size),
        "context_tokens": (n, 1, language.hidden),
        "attention": (n, vision.patches),
        "relevance": (n,),
        "sequence": (1, *tokens, language.hidden),
        "chunks": (runs,),
        "logits": (runs, language.vocab_size),
    }
    for name, shape in wanted.items():
        array, kind = arrays[name], "i" if name in ("question_ids", "chunks") else "f"
        if array.shape != shape or array.dtype.kind != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is no number")
    question = golden.question_ids
    if question.min() < 0 or question.max() >= model.text_decoder.vocab_size:
        raise ValueError("question_ids has no word of the model's")
    if golden.chunks.min() < 1 or golden.chunks.max() > MAX_BYTES or golden.chunks.sum() != tokens[0]:
        raise ValueError(f"{golden.chunks.tolist()} are no parts of {tokens[0]} tokens")
    return golden
