"""What TensorRT refuses is said in our words: the graph, the operator or type, the version."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llamavid.contract import DType, GraphContract, TensorSpec
from llamavid.embedded import default_bundle
from llamavid.engines import Profile
from llamavid.errors import BundleError, DeviceError, LlamaVidError
from llamavid.export.compilation import Settings, compiled
from llamavid.export.tensorrt_library import TensorRt, open_library
from llamavid.targets import Library
from tests.export.rtx import tensorrt_rtx

FLOAT, HALF, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SHAPE = ["n", 64]
AMPERE = Settings(capabilities=((8, 0),))


@pytest.fixture
def trt() -> TensorRt:
    return tensorrt_rtx()


def contract_of(dtype: DType, out: DType | None = None, name: str = "x") -> GraphContract:
    dims = tuple(map(str, SHAPE))
    return GraphContract((TensorSpec(name, dtype, dims),), (TensorSpec("y", out or dtype, dims),))


def frames(largest: int = 4) -> tuple[Profile, ...]:
    return (Profile("frames", {"x": (1, 64)}, {"x": (2, 64)}, {"x": (largest, 64)}),)


def write_graph(
    folder: Path, nodes: list[onnx.NodeProto], onnx_type: int, weights: tuple[onnx.TensorProto, ...] = ()
) -> Path:
    boundary = [helper.make_tensor_value_info(name, onnx_type, SHAPE) for name in "xy"]
    graph = helper.make_graph(nodes, "g", boundary[:1], boundary[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    file = folder / "content.onnx"
    file.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString())
    return file


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, name=f"layers.3/{kind}", **attributes)


def refusal(
    trt: TensorRt,
    file: Path,
    dtype: DType,
    settings: Settings = AMPERE,
    *,
    contract: GraphContract | None = None,
    profiles: tuple[Profile, ...] | None = None,
) -> str:
    """The one line that building the graph ends with."""
    with pytest.raises(LlamaVidError) as caught:
        compiled(trt, "content", file, contract or contract_of(dtype), profiles or frames(), settings)
    line = str(caught.value)
    assert "\n" not in line
    assert "/_src/" not in line  # the library's own source files
    return line


def square(name: str, dtype: type = np.float16) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.eye(64, dtype=dtype), name)


def test_an_operator_that_is_not_known_is_named(trt: TensorRt, tmp_path: Path) -> None:
    file = write_graph(tmp_path, [node("Dream", ["x"], ["y"])], FLOAT)
    line = refusal(trt, file, DType.FLOAT32)
    assert line.startswith(f"graph content: operator Dream is not known to {trt.label} (node layers.3/Dream)")


def test_onnx_runtimes_own_operator_is_not_known_either(trt: TensorRt) -> None:
    bundle = default_bundle()
    line = refusal(trt, bundle / "llm.onnx", DType.FLOAT16)
    assert "operator GroupQueryAttention is not known to TensorRT-RTX 1" in line


def test_mixed_types_are_named(trt: TensorRt, tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["z"], to=HALF), node("Add", ["x", "z"], ["y"])]
    line = refusal(trt, write_graph(tmp_path, nodes, FLOAT), DType.FLOAT32)
    assert line == (
        "graph content: operator Add mixes float32 and float16 (node layers.3/Add); expected one type"
    )


def test_a_quantization_that_is_not_taken_is_named(trt: TensorRt, tmp_path: Path) -> None:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    line = refusal(trt, write_graph(tmp_path, nodes, FLOAT), DType.FLOAT32)
    assert "graph content: operator DynamicQuantizeLinear is not known to TensorRT-RTX" in line


def test_a_damaged_file_is_said_to_be_one(trt: TensorRt, tmp_path: Path) -> None:
    file = write_graph(tmp_path, [node("Relu", ["x"], ["y"])], FLOAT)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BundleError, match=r"graph content cannot be read .* Export the bundle again"):
        compiled(trt, "content", file, contract_of(DType.FLOAT32), frames(), AMPERE)


def test_bfloat16_is_refused_for_turing(trt: TensorRt, tmp_path: Path) -> None:
    weight = helper.make_tensor("w", BFLOAT16, [64, 64], np.eye(64, dtype=np.float32).ravel())
    nodes = [
        node("Cast", ["x"], ["b"], to=BFLOAT16),
        node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    line = refusal(
        trt, write_graph(tmp_path, nodes, FLOAT, (weight,)), DType.FLOAT32, Settings(capabilities=((7, 5),))
    )
    assert line.startswith("graph content computes in bfloat16, which SM75 does not have. Export the bundle")


def test_float32_products_are_refused_for_turing(trt: TensorRt, tmp_path: Path) -> None:
    file = write_graph(tmp_path, [node("MatMul", ["x", "w"], ["y"])], FLOAT, (square("w", np.float32),))
    line = refusal(trt, file, DType.FLOAT32, Settings(capabilities=((7, 5),)))
    assert "graph content multiplies in float32 (node layers.3/MatMul), which TensorRT-RTX 1" in line
    assert "does not for SM75. Export the bundle again with --precision fp16" in line


def test_fp8_is_refused_for_ampere_and_built_for_ada(trt: TensorRt, tmp_path: Path) -> None:
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    scale = onnx.numpy_helper.from_array(np.float16(0.1), "scale")
    nodes = []
    for name in "xw":
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", "scale", "zero"], [f"{name}d"]))
    nodes.append(node("MatMul", ["xd", "wd"], ["y"]))
    file = write_graph(tmp_path, nodes, HALF, (zero, scale, square("w")))
    line = refusal(trt, file, DType.FLOAT16)
    assert line.startswith("graph content computes in fp8, which SM80 does not have")
    ada = Settings(capabilities=((8, 9),))
    assert compiled(trt, "content", file, contract_of(DType.FLOAT16), frames(), ada).data.nbytes > 0


def test_a_library_that_does_not_build_for_a_device_names_those_it_does(
    trt: TensorRt, tmp_path: Path
) -> None:
    file = write_graph(tmp_path, [node("Relu", ["x"], ["y"])], FLOAT)
    line = refusal(trt, file, DType.FLOAT32, Settings(capabilities=((8, 7),)))
    assert line.startswith(f"{trt.label} does not build for SM87; expected SM")
    assert "SM86" in line


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (contract_of(DType.FLOAT16), "graph content: x is float32 [-1, 64]; expected float16 ['n', 64]"),
        (contract_of(DType.FLOAT32, name="pixels"), "graph content and its contract differ in pixels, x"),
    ],
)
def test_a_graph_that_is_not_its_contracts_is_refused(
    trt: TensorRt, tmp_path: Path, contract: GraphContract, said: str
) -> None:
    file = write_graph(tmp_path, [node("Relu", ["x"], ["y"])], FLOAT)
    assert refusal(trt, file, DType.FLOAT32, contract=contract) == said


def test_steps_of_the_build_are_told_and_the_engine_is_bytes(trt: TensorRt, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    result = compiled(
        trt,
        "content",
        write_graph(tmp_path, [node("Relu", ["x"], ["y"])], FLOAT),
        contract_of(DType.FLOAT32),
        frames(),
        AMPERE,
        on_step=lambda phase, done, of: steps.append((phase, done, of)),
    )
    assert len(bytes(result.data)) == result.data.nbytes
    assert all(1 <= done <= of for _, done, of in steps)
    assert len(steps) > 3


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_library_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(DeviceError, match=r"TensorRT is not installed\. Install it from NVIDIA's index"):
        open_library(Library.TENSORRT)
