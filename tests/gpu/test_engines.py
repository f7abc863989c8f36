"""Engines on a real GPU: built here from the embedded bundle, compared with ONNX Runtime on the CPU."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from tests.gpu.conftest import needed, our_cuda

pytestmark = pytest.mark.gpu

HALF = 2e-2  # relative norm, float16 on both sides with other sums
FRAMES, TOKENS = 64, 128


def relative(found: Any, expected: Any) -> float:
    found, expected = (np.asarray(each, np.float64) for each in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine set for this very device, by each library that is installed."""
    our_cuda()
    needed("onnxruntime", "onnx", "click", "sentencepiece", "tokenizers")
    import platform

    from click.testing import CliRunner

    from llamavid.bundle import open_bundle
    from llamavid.cli import main
    from llamavid.embedded import default_bundle
    from llamavid.engines import open_engines
    from llamavid.errors import DeviceError
    from llamavid.runtime.tensorrt.device import this_device
    from llamavid.targets import Library, target_of, version_of

    library = Library(request.param)
    try:
        device = this_device(library)
        target = target_of(device.capability, library, version_of(device.version), platform.machine())
    except DeviceError as error:
        pytest.skip(error.given)
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(default_bundle(), folder)
    done = CliRunner().invoke(main, ["build", str(folder), "--target", target.name])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(folder)
    return bundle, open_engines(bundle, target.name), device


@pytest.mark.parametrize("stage", ["vision", "content", "context"])
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_each_frame_engine_computes_what_its_graph_does(built: Any, stage: str, frames: int) -> None:
    from llamavid.runtime.parity import run_graph
    from llamavid.runtime.tensorrt.parity import run_engine_graph

    bundle, engines, _ = built
    entry = bundle.manifest.graphs[stage]
    random = np.random.default_rng(0)
    named = {"n": frames, "R": bundle.manifest.model.vision.patches + 1, "L": 7}
    inputs = {
        spec.name: random.integers(1, 200, shape)
        if spec.dtype.value == "int64"
        else random.standard_normal(shape).astype(spec.dtype.numpy)
        for spec in entry.contract.inputs
        for shape in [[dim if isinstance(dim, int) else named[dim] for dim in spec.shape]]
    }
    found = run_engine_graph(engines, stage, inputs)
    expected = run_graph(bundle.folder, entry, inputs)
    assert {name: relative(found[name], expected[name]) < HALF for name in expected} == dict.fromkeys(
        expected, True
    )


def test_128_decoded_tokens_follow_onnx_runtime(built: Any) -> None:
    """The first step prepares, the others are one captured graph."""
    from llamavid.runtime.parity import run_language
    from llamavid.runtime.tensorrt.parity import run_engine_language

    bundle, engines, _ = built
    language, entry = bundle.manifest.model.language, bundle.manifest.graphs["llm"]
    random = np.random.default_rng(0)
    shapes = [(1, 100, language.hidden), *[(1, 1, language.hidden)] * TOKENS]
    dtype = entry.contract.spec("inputs_embeds").dtype.numpy
    chunks = [(0.05 * random.standard_normal(shape)).astype(dtype) for shape in shapes]
    found = run_engine_language(engines, language, chunks)
    expected = run_language(bundle.folder, entry, language, chunks)
    assert max(relative(a, b) for a, b in zip(found, expected, strict=True)) < HALF


def test_a_session_encodes_64_frames_and_answers_and_gives_the_memory_back(built: Any, cuda: Any) -> None:
    from llamavid.bundle import ParityRow
    from llamavid.engines import write_stamp
    from llamavid.runtime.session import VideoSession
    from llamavid.runtime.video.frames import FrameTime

    bundle, engines, device = built
    graphs = [entry.graph for entry in engines.manifest.engines.values()]
    rows = [ParityRow(graph, "fp16", "the tests above", 0.0, 0.0, HALF, "float16") for graph in graphs]
    write_stamp(engines, device, rows)
    side = bundle.manifest.model.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((FRAMES, 3, side, side)).astype(np.float32)
    times = [FrameTime(at, float(at)) for at in range(FRAMES)]
    held = {}
    free = cuda.free_bytes()
    for on in ("cpu", engines.manifest.target):
        with VideoSession(bundle, on=on) as session:
            memory = session._encoder.memory(frames=FRAMES, memory_bytes=None)
            session._encoder.remember(memory, pixels, times)
            session._watch(times, memory, [])
            held[on] = session.watched.features()  # type: ignore[union-attr]
            assert session.ask("What happens?", max_new_tokens=TOKENS).token_ids is not None
    assert relative(held[engines.manifest.target], held["cpu"]) < HALF
    assert cuda.free_bytes() > free - (64 << 20)  # what the libraries keep for themselves
