"""A dimension's name becomes a number in the file's bytes, as `onnx` would have written it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from llamavid.export.fixed_length import graph_text


def write_graph(folder: Path) -> Path:
    """A cache that is copied, with a node and a tensor called `cache` too."""
    shape = [1, 4, "cache", "cached"]
    boundary = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("past", "cache")]
    node = helper.make_node("Identity", ["past"], ["cache"], name="cache")
    graph = helper.make_graph([node], "cache", boundary[:1], boundary[1:])
    file = folder / "llm.onnx"
    file.write_bytes(helper.make_model(graph, ir_version=11).SerializeToString())
    return file


@pytest.mark.parametrize("length", [1, 127, 128, 4096, 65536, 1 << 31])
def test_the_named_dimension_is_that_number_and_nothing_else_changes(tmp_path: Path, length: int) -> None:
    file = write_graph(tmp_path)
    found = onnx.load_from_string(graph_text(file, {"cache": length}))
    expected = onnx.load(str(file))
    for value in (*expected.graph.input, *expected.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value = length
    assert found == expected


def test_the_file_itself_stays_open_to_any_length(tmp_path: Path) -> None:
    file = write_graph(tmp_path)
    before = file.read_bytes()
    assert graph_text(file, {}) == before
    assert len(graph_text(file, {"cache": 8192})) == len(before)
    assert file.read_bytes() == before
