"""The PyTorch model as a format computes it: the reference that a rounded graph must equal.

A graph in int8 is judged against PyTorch with the same weights, whose activations are rounded at the same
places. So a mistake shows however much the format itself costs, which is told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from llamavid.calibrated import Calibration, GraphCalibration
from llamavid.export.precision import Precision
from llamavid.model.rounded import rounded
from llamavid.model.streamed import Around
from llamavid.scales import GraphScales

_CONTENT = "content_projector"


def rounding(precision: Precision, calibration: Calibration | None = None) -> Around | None:
    """What a part of the model is to be run in, so that it computes what its graph does; None: as it is.

    Args:
        calibration: None for int4 without data.
    """
    if not precision.rounds:
        return None

    compute = precision.scales or precision.compute

    @contextmanager
    def around(part: str, module: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for graph, name, inner in _placed(part, module):
                found = calibration.graph(graph) if calibration else _plain(precision)
                if found:
                    stack.enter_context(rounded(inner, name, found, compute=compute))
            yield

    return around


def _placed(part: str, module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """A part of the checkpoint -> its graph, its name there, the module; the compressor is of two graphs."""
    room, _, inner = part.partition(".")
    if room == "vision":
        yield "vision", inner, module
    elif room == "language":
        yield "llm", inner, module
    elif room == "text_decoder":
        yield "context", part, module
    else:
        for name, child in module.named_children():
            of_content = name == _CONTENT
            yield ("content", name, child) if of_content else ("context", f"{part}.{name}", child)


def _plain(precision: Precision) -> GraphCalibration:
    return GraphCalibration(GraphScales(precision.name, block=precision.int4_block), {})
