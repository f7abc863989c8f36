"""The ceilings of this machine's GPU, measured: a copy in its memory, and a product per type by TensorRT.

A product is built here as an engine of one layer, so it is TensorRT's own best kernel. Types that this
TensorRT or GPU does not build are left out: no floor is told for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llamavid.ceilings import Ceilings
from llamavid.runtime.profile.product_graph import product_graph, quantized_product_graph
from llamavid.runtime.tensorrt.buffers import DeviceBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Stream, TimedEvent
from llamavid.runtime.tensorrt.library import TensorRt

_COPIED = 1 << 30  # bytes, and at most a quarter of what is free: more than an L2 cache holds
_SIDE = 4096  # of a square product: 137 GFLOP
_ROUNDS, _SECONDS = 30, 1.0
_TYPES = ("fp32", "fp16", "int8", "fp8")


def gpu_ceilings(
    cuda: Cuda, tensorrt: TensorRt, name: str, on_step: Callable[[str], None] = lambda what: None
) -> Ceilings:
    """Raises `DeviceError` where the GPU fails."""
    on_step("measuring a memory copy")
    bandwidth = _copy_bandwidth(cuda)
    products = {}
    for precision in _TYPES:
        on_step(f"building and measuring {precision} products")
        plan = product_plan(tensorrt, precision, _SIDE)
        if plan is not None:
            products[precision] = 2 * _SIDE**3 / _product_seconds(cuda, tensorrt, plan)
    return Ceilings(name, products, bandwidth, "measured here")


def product_plan(tensorrt: TensorRt, precision: str, side: int) -> Any | None:
    """An engine of one product; None where it is not built here: TensorRT's lean runtime builds nothing."""
    api = tensorrt.api
    if not hasattr(api, "Builder"):
        return None
    dtype = {"fp32": "float32", "fp16": "float16"}.get(precision)
    graph = product_graph(dtype, side)[0] if dtype else quantized_product_graph(precision, side)
    builder = api.Builder(tensorrt.log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, tensorrt.log)
    config = builder.create_builder_config()
    config.clear_flag(api.BuilderFlag.TF32)
    built = builder.build_serialized_network(network, config) if parser.parse(graph) else None
    tensorrt.words()  # why not is of no interest
    return built


def _product_seconds(cuda: Cuda, tensorrt: TensorRt, plan: Any) -> float:
    runtime = tensorrt.api.Runtime(tensorrt.log)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    buffers = []
    for at in range(engine.num_io_tensors):
        name = engine.get_tensor_name(at)
        size = int(np.prod(tuple(engine.get_tensor_shape(name)))) * 4  # no type here is wider
        buffers.append(DeviceBuffer(cuda, size, "a product"))
        context.set_tensor_address(name, buffers[-1].address)
    with Stream(cuda) as stream:
        for buffer in buffers:
            stream.fill_zero(buffer.address, buffer.size)
        seconds = _best_seconds(cuda, stream, lambda: context.execute_async_v3(int(stream.handle)))
    for buffer in buffers:
        buffer.close()
    return seconds


def _copy_bandwidth(cuda: Cuda) -> float:
    """Bytes a second, read and written."""
    size = min(_COPIED, cuda.free_bytes() // 8)
    source, target = (DeviceBuffer(cuda, size, "a copy") for _ in range(2))
    with Stream(cuda) as stream:
        stream.fill_zero(source.address, size)
        seconds = _best_seconds(cuda, stream, lambda: stream.copy(target.address, source.address, size))
    source.close()
    target.close()
    return 2 * size / seconds


def _best_seconds(cuda: Cuda, stream: Stream, work: Callable[[], object]) -> float:
    begin, end = TimedEvent(cuda), TimedEvent(cuda)
    best, since = float("inf"), time.perf_counter()
    work()
    for _ in range(_ROUNDS):
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        best = min(best, end.milliseconds_since(begin) / 1000)
        if time.perf_counter() - since > _SECONDS:
            break
    begin.close()
    end.close()
    return best
