"""An engine set of a bundle for the software GPU, by the words of `llamavid.engines`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llamavid.bundle import Bundle, FileEntry, ParityRow, open_bundle
from llamavid.contract import GraphContract, Lowering
from llamavid.engines import (
    ENGINES,
    FOLDER,
    FORMAT_VERSION,
    Device,
    EngineEntry,
    EngineManifest,
    EngineSet,
    Profile,
    open_engines,
    write_stamp,
)
from llamavid.targets import Library


def write_engines(
    folder: Path,
    *,
    target: str = "a100",
    lowering: Lowering = Lowering.STATIC,
    version: str = "11.4.0.12",
    capability: tuple[int, int] = (8, 0),
    frames: int = 4,
    prefill: int = 64,
    cache: tuple[int, int] | None = None,
    decode: bool = True,
) -> Path:
    """Engines of every graph for one target; not stamped. Gives their folder.

    Args:
        frames, prefill: the largest runs.
        cache: the shortest and the longest; equal where the engine has but one.
        decode: whether the language engine has a profile to write with; TensorRT-RTX's has one for both.
    """
    bundle = open_bundle(folder)
    place = folder / FOLDER / target
    place.mkdir(parents=True)
    context = bundle.manifest.model.language.context_length
    sizes = {"cache": cache or (min(256, context), context), "frames": (1, frames), "prefill": (1, prefill)}
    entries = {}
    for stage in ("vision", "content", "context", "llm"):
        entries[stage] = _engine(bundle, place, stage, lowering, sizes, decode=decode)
    manifest = EngineManifest(
        FORMAT_VERSION,
        bundle.digest,
        target,
        Library.TENSORRT,
        version,
        capability,
        lowering,
        False,
        False,
        {},
        {},
        entries,
    )
    (place / ENGINES).write_text(manifest.to_json())
    return place


def stamp(folder: Path, device: Device, *, target: str = "a100") -> EngineSet:
    """As `llamavid verify` does when all agrees."""
    engines = open_engines(open_bundle(folder), target)
    write_stamp(engines, device, passed(engines))
    return engines


def passed(engines: EngineSet) -> list[ParityRow]:
    """A row for each engine."""
    return [
        ParityRow(entry.graph, entry.precision, "golden inputs", 0.0, 0.0, 1e-2, "float16")
        for entry in engines.manifest.engines.values()
    ]


def _engine(
    bundle: Bundle,
    place: Path,
    stage: str,
    lowering: Lowering,
    sizes: dict[str, tuple[int, int]],
    *,
    decode: bool,
) -> EngineEntry:
    graph = f"llm.{lowering.value}" if stage == "llm" else stage
    entry = bundle.manifest.graphs[graph]
    contract = entry.contract
    profiles = _profiles(bundle, contract, sizes, decode=decode)
    plan = {
        "onnx": str(bundle.path(entry.file).resolve()),
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype.value, "shape": spec.shape, "mode": mode}
            for mode, specs in (("INPUT", contract.inputs), ("OUTPUT", contract.outputs))
            for spec in specs
        ],
        "profiles": [
            {
                name: (profile.smallest[name], profile.tuned[name], profile.largest[name])
                for name in profile.smallest
            }
            for profile in profiles
        ],
    }
    data = json.dumps(plan).encode()
    file = f"{stage}.engine"
    (place / file).write_bytes(data)
    content = FileEntry(len(data), hashlib.sha256(data).hexdigest())
    return EngineEntry(file, graph, entry.precision, contract, profiles, content)


def _profiles(
    bundle: Bundle, contract: GraphContract, sizes: dict[str, tuple[int, int]], *, decode: bool
) -> tuple[Profile, ...]:
    model = bundle.manifest.model
    patches, words = model.vision.patches, model.text_decoder.max_tokens
    if not any(spec.name == "inputs_embeds" for spec in contract.inputs):
        ranges = {"n": sizes["frames"], "R": (patches, patches + 1), "L": (1, words)}
        return (_profile("frames", contract, ranges),)
    reading = _profile("prefill", contract, {"T": sizes["prefill"], "cache": sizes["cache"]})
    writing = _profile("decode", contract, {"T": (1, 1), "cache": sizes["cache"]})
    return (reading, writing) if decode else (reading,)


def _profile(name: str, contract: GraphContract, ranges: dict[str, tuple[int, int]]) -> Profile:
    smallest, largest = (
        {
            spec.name: tuple(dim if isinstance(dim, int) else ranges[dim][end] for dim in spec.shape)
            for spec in contract.inputs
        }
        for end in (0, 1)
    )
    return Profile(name, smallest, largest, largest)
