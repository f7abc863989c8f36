"""What TensorRT refuses, as one sentence of ours: the graph, the operator or reason, the library's version.

Takes what the parser or the builder complained of, gives the error to raise. The library's own words come
last, in brackets and cut: they name its source files, not the user's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamavid.errors import BundleError, DeviceError, LlamaVidError
from llamavid.export.tensorrt_library import TensorRt

_UNREADABLE = ("MODEL_DESERIALIZE_FAILED", "INVALID_GRAPH")
_WHY = {
    "UNSUPPORTED_NODE_ATTR": "has an attribute that {library} does not take",
    "UNSUPPORTED_NODE_INPUT": "has an input that {library} does not take",
    "UNSUPPORTED_NODE_DATATYPE": "has a type that {library} does not take",
    "UNSUPPORTED_NODE_DYNAMIC": "has a shape that {library} must know before",
    "UNSUPPORTED_NODE_SHAPE": "has a shape that {library} does not take",
    "MEM_ALLOC_FAILED": "does not fit into memory",
}
_PLUGIN = ("plugin not found", "failed to load")  # how an operator that is not known is spoken of
_MIXED = re.compile(r"must have same input types.*?of types (\w+) and (\w+)")
_HARDWARE_TYPES = re.compile(r"target\(s\) (\S+?),.*datatypes: ([\w ,]+)")
_NO_FLOAT32 = re.compile(r"Cannot compile operation '(\S+)' for .*?\((\w+)\): FP32 GEMM")
_NODE = re.compile(r"(?:ForeignNode\[|node )([\w./:]+)")
_TYPES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "b16": "bfloat16", "fp8_e4m3": "fp8"}
_REEXPORT = "Export the bundle again with this version of llamavid."


@dataclass(frozen=True)
class Complaint:
    """One of the parser's errors."""

    code: str
    text: str
    node: str
    operator: str
    known: bool  # whether the parser knows the operator at all


def parser_refusal(trt: TensorRt, graph: str, complaints: list[Complaint]) -> LlamaVidError:
    """The first is the cause; the rest are mostly its consequences."""
    if not complaints:
        return BundleError(f"graph {graph} is not read by {trt.label}", next_step=_REEXPORT)
    first = complaints[0]
    if first.code in _UNREADABLE:
        return BundleError(f"graph {graph} cannot be read ({_cut(first.text)})", next_step=_REEXPORT)
    where = f"graph {graph}: operator {first.operator}"
    if not first.known or any(words in first.text.lower() for words in _PLUGIN):
        return DeviceError(f"{where} is not known to {trt.label} (node {first.node})", next_step=_REEXPORT)
    mixed = _MIXED.search(first.text)
    if mixed:
        a, b = (_TYPES.get(name, name.lower()) for name in mixed.groups())
        return DeviceError(f"{where} mixes {a} and {b} (node {first.node})", expected="one type")
    why = _WHY.get(first.code, "is not taken by {library}").format(library=trt.label)
    return DeviceError(f"{where} {why} (node {first.node}: {_cut(first.text)})", next_step=_REEXPORT)


def builder_refusal(trt: TensorRt, graph: str, errors: list[str]) -> LlamaVidError:
    """Of a graph that was read, and for which no engine came out."""
    text = " ".join(errors)
    types = _HARDWARE_TYPES.search(text)
    if types:
        target, names = types.groups()
        kinds = ", ".join(_TYPES.get(name, name) for name in names.replace(",", " ").split())
        return DeviceError(
            f"graph {graph} computes in {kinds}, which {target.upper()} does not have",
            next_step="Export the bundle again in another precision, or choose another --target.",
        )
    product = _NO_FLOAT32.search(text)
    if product:
        node, device = product.groups()
        return DeviceError(
            f"graph {graph} multiplies in float32 (node {node}), which {trt.label} does not for {device}",
            next_step="Export the bundle again with --precision fp16, or int8 and --compute fp16.",
        )
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        return DeviceError(
            f"graph {graph}: {trt.label} ran out of memory",
            next_step="Free some, or build with smaller --frames, --prefill or --workspace.",
        )
    if "workspace limit" in text:
        return DeviceError(
            f"graph {graph}: {trt.label} has no kernel for it with so little memory beside its tensors",
            next_step="Pass a larger --workspace, or none.",
        )
    node = _NODE.search(text)
    where = f" at {node[1]}" if node else ""
    said = f" ({_cut(errors[0])})" if errors else ""
    return DeviceError(f"graph {graph}: {trt.label} has no kernels for it{where}{said}")


def _cut(text: str) -> str:
    """The first line without the library's source positions."""
    line = text.strip().splitlines()[0] if text.strip() else "it does not say why"
    line = re.sub(r"\s*\(?In \w+ at /\S+", "", line)
    return line if len(line) <= 200 else f"{line[:200]}..."
