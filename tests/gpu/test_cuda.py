"""Our CUDA calls on a real GPU: memory, streams that wait for each other, captured work, errors in words."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def test_bytes_go_up_and_come_back(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    sent, back = PinnedBuffer(cuda, MIB), PinnedBuffer(cuda, MIB)
    sent.bytes[:] = np.random.default_rng(0).integers(0, 255, MIB, np.uint8)
    on_gpu = DeviceBuffer(cuda, MIB, "a test")
    with Stream(cuda) as stream:
        stream.copy(on_gpu.address, sent.address, MIB)
        stream.copy(back.address, on_gpu.address, MIB)
        stream.synchronize()
    assert np.array_equal(sent.bytes, back.bytes)


def test_rows_are_put_into_a_wider_block(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    rows, width, pitch = 64, 512, 4096  # as new keys into a cache
    sent, back = PinnedBuffer(cuda, rows * width), PinnedBuffer(cuda, rows * pitch)
    sent.bytes[:] = np.arange(rows * width) % 251
    block, new = (DeviceBuffer(cuda, size, "a test") for size in (rows * pitch, rows * width))
    with Stream(cuda) as stream:
        stream.fill_zero(block.address, rows * pitch)
        stream.copy(new.address, sent.address, rows * width)
        stream.copy_rows(
            block.address + 1024,
            new.address,
            width=width,
            rows=rows,
            target_pitch=pitch,
            source_pitch=width,
        )
        stream.copy(back.address, block.address, rows * pitch)
        stream.synchronize()
    found = back.view(np.uint8, (rows, pitch))
    assert np.array_equal(found[:, 1024 : 1024 + width].ravel(), sent.bytes)
    assert found.sum() == found[:, 1024 : 1024 + width].sum()


def test_a_stream_that_waits_sees_what_the_other_wrote_last(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    size = 64 * MIB
    a, b = (DeviceBuffer(cuda, size, "a test") for _ in range(2))
    mark, back = PinnedBuffer(cuda, 4), PinnedBuffer(cuda, 4)
    mark.view(np.int32, (1,))[0] = 1234
    with Stream(cuda) as writing, Stream(cuda) as reading:
        for _ in range(50):  # some milliseconds of work before the mark
            writing.copy(b.address, a.address, size)
        writing.copy(b.address + size - 4, mark.address, 4)
        reading.wait_for(writing)
        reading.copy(back.address, b.address + size - 4, 4)
        reading.synchronize()
        assert back.view(np.int32, (1,))[0] == 1234


def test_captured_work_runs_at_each_launch_with_what_lies_there_then(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    sent, back = PinnedBuffer(cuda, 4), PinnedBuffer(cuda, 4)
    on_gpu = DeviceBuffer(cuda, 4, "a test")
    with Stream(cuda) as stream:
        sent.view(np.int32, (1,))[0] = -1
        back.view(np.int32, (1,))[0] = 0

        def work() -> None:
            stream.copy(on_gpu.address, sent.address, 4)
            stream.copy(back.address, on_gpu.address, 4)

        graph = stream.captured(work)
        stream.synchronize()
        assert back.view(np.int32, (1,))[0] == 0  # capturing runs nothing
        for token in range(128):
            sent.view(np.int32, (1,))[0] = token
            stream.launch(graph)
            stream.synchronize()
            assert back.view(np.int32, (1,))[0] == token
        graph.close()


def test_memory_that_is_forgotten_while_work_is_captured_does_not_end_the_capture(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    target, forgotten = DeviceBuffer(cuda, 4, "a test"), [DeviceBuffer(cuda, 4, "a test")]
    with Stream(cuda) as stream:

        def work() -> None:
            forgotten.clear()
            stream.fill_zero(target.address, 4)

        stream.launch(stream.captured(work))
        stream.synchronize()


def test_an_error_while_work_is_captured_leaves_a_stream_that_works(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    buffer = DeviceBuffer(cuda, 4, "a test")
    with Stream(cuda) as stream:
        with pytest.raises(ZeroDivisionError):
            stream.captured(lambda: print(1 // 0))
        stream.fill_zero(buffer.address, 4)
        stream.synchronize()


def test_memory_is_given_back_by_close_and_by_being_forgotten(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer

    size = 256 * MIB
    DeviceBuffer(cuda, MIB, "a test")  # the context is made
    before = cuda.free_bytes()
    held = DeviceBuffer(cuda, size, "a test")
    assert cuda.free_bytes() <= before - size
    held.close()
    held.close()
    assert cuda.free_bytes() > before - size // 2
    held = DeviceBuffer(cuda, size, "a test")
    del held
    gc.collect()
    assert cuda.free_bytes() > before - size // 2


def test_too_much_memory_is_refused_with_both_numbers_and_all_goes_on(cuda: Any) -> None:
    from llamavid.errors import DeviceError
    from llamavid.runtime.tensorrt.buffers import DeviceBuffer
    from llamavid.runtime.tensorrt.cuda import Stream

    with pytest.raises(DeviceError, match=r"a cache needs [\d,.]+ MiB .* at most [\d,.]+, which are free"):
        DeviceBuffer(cuda, 1 << 50, "a cache")
    with Stream(cuda) as stream:
        stream.synchronize()


def test_a_failed_call_is_named_with_cuda_s_own_words(cuda: Any) -> None:
    from llamavid.errors import DeviceError

    with pytest.raises(DeviceError, match=r"cudaSetDevice failed: invalid device ordinal"):
        cuda("cudaSetDevice", 9999)
    assert cuda.api.cudaGetLastError()[0] == cuda.api.cudaError_t.cudaSuccess  # TensorRT would find it


def test_the_device_has_a_name_a_capability_and_a_driver(cuda: Any) -> None:
    from llamavid.runtime.tensorrt.device import capability, driver_version, found_gpu

    assert capability(cuda) >= (5, 0)
    assert driver_version(cuda)
    assert "compute capability" in found_gpu()
