"""The first block that goes wrong: where an engine, or a graph, leaves what float32 makes of the same inputs.

    for step in bisect(file, inputs, run=..., reference=...):
        print(step.block, step.own_error, step.error)

Note [Own error]
    An error grows from block to block, so its size says little about where it came from. Therefore what is
    examined runs once, whole, with the outputs of every block as outputs of the graph; then each block alone
    runs in float32 on the inputs that it had there. The difference is the block's own: what its inputs do
    not explain. The same blocks one after another from the graph's inputs give the error so far.

Only one block is in memory beside what is examined. The reference is Note [Reference] in
`llamavid.export.upcast`. What runs is handed in: ONNX Runtime, or an engine built from the marked graph.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamavid.contract import GraphContract
from llamavid.elements import as_float32
from llamavid.export.blocks import Block, Graph, blocks_of, write_block, write_marked

Array = npt.NDArray[Any]

# Of one block's own error. A block rounds a few times; a graph's tolerance is for all of them.
BLOCK_TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 5e-2, "fp8": 5e-2, "int4": 5e-2}


class RunFile(Protocol):
    """Runs an ONNX file, its weights beside it: outputs by name."""

    def __call__(self, file: Path, inputs: Mapping[str, Array]) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class BlockError:
    """What one block does to the values."""

    block: str
    own_error: float  # relative norm, of the output that it is largest for
    error: float  # of the same, all that came before it included
    output: str  # which one that is


def bisect(
    file: Path,
    contract: GraphContract,
    inputs: Mapping[str, Array],
    *,
    run: RunFile,
    reference: RunFile,
) -> Iterator[BlockError]:
    """Each block of the graph in turn.

    Args:
        inputs: the graph's, in its types.
        run: runs the graph as it is examined; the marked copy is in a temporary folder until the end.
        reference: runs blocks in float32.
    """
    graph = Graph(file)
    blocks = blocks_of(graph)
    with tempfile.TemporaryDirectory(prefix=".llamavid-bisect-", dir=_nearby(file)) as folder:
        marked, marks = write_marked(graph, blocks, Path(folder))
        given = _in_float32(contract, inputs)
        found = given | _marked_values(run(marked, inputs), marks, contract)
        exact = dict(given)
        for block in blocks:
            alone = write_block(graph, block, Path(folder))
            own = reference(alone, _wanted(graph, block, found))
            exact |= reference(alone, _wanted(graph, block, exact))
            yield _block_error(block, found, own, exact)


def first_wrong(steps: Sequence[BlockError], precision: str) -> BlockError | None:
    """The first block whose own error is over its tolerance, or no number."""
    bound = BLOCK_TOLERANCES[precision]
    return next((step for step in steps if not step.own_error <= bound), None)


def next_inputs(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """A language model's inputs for `rows` [1, T, D], after it has run with `inputs`: the cache goes on."""
    length = int(inputs["total_length"][0])
    cache = {}
    for name, past in inputs.items():
        if name.startswith("past."):
            present, new = (outputs.get(name.replace("past", kind, 1)) for kind in ("present", "new"))
            cache[name] = present if present is not None else past.copy()
            if present is None and new is not None:  # the primitive lowering gives the new rows alone
                cache[name][:, :, length - new.shape[2] : length] = new
    total = np.asarray([length + rows.shape[1]], np.int32)
    return {"inputs_embeds": rows, "total_length": total, **cache}


def _nearby(file: Path) -> Path | None:
    """Where weights of gigabytes can be linked instead of copied, if that may be written."""
    outside = file.resolve().parent.parent  # of the bundle, which stays as it is
    return outside if os.access(outside, os.W_OK) else None


def _in_float32(contract: GraphContract, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What floats the arrays say; whole numbers as they are."""
    specs = {spec.name: spec for spec in (*contract.inputs, *contract.outputs)}
    return {
        name: as_float32(array, specs[name].dtype) if "float" in specs[name].dtype.value else array
        for name, array in arrays.items()
    }


def _marked_values(
    outputs: Mapping[str, Array], marks: Mapping[str, str], contract: GraphContract
) -> dict[str, Array]:
    """By their names in the graph, float32."""
    own = {spec.name: outputs[spec.name] for spec in contract.outputs}
    return _in_float32(contract, own) | {value: outputs[name] for value, name in marks.items()}


def _wanted(graph: Graph, block: Block, values: Mapping[str, Array]) -> dict[str, Array]:
    nodes = (graph.nodes[at] for at in (*block.nodes, *block.needed))
    whole = {name for node in nodes for name in node.input if name in graph.inputs}
    return {name: values[name] for name in {*block.inputs, *whole}}


def _block_error(
    block: Block, found: Mapping[str, Array], own: Mapping[str, Array], exact: Mapping[str, Array]
) -> BlockError:
    errors = {name: _difference(own[name], found[name]) for name in block.outputs}
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    return BlockError(block.name, errors[worst], _difference(exact[worst], found[worst]), worst)


def _difference(reference: Array, found: Array) -> float:
    """Norm of the difference over the norm. Equal infinities are equal: masks are made of them."""
    if reference.shape != found.shape:
        return float("nan")
    a, b = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(a == b, 0, a - b)
        size = float(np.linalg.norm(a[np.isfinite(a)]))
        return float(np.linalg.norm(apart)) / size if size else float(np.linalg.norm(apart))
