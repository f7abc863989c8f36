"""Engines of every precision over the software GPU, and what verify runs them by."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from llamavid.bundle import open_bundle
from llamavid.contract import DType, Lowering
from llamavid.elements import as_elements, as_floats
from llamavid.engines import open_engines
from llamavid.errors import DeviceError
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.runtime.parity import run_graph, run_language
from llamavid.runtime.session import VideoSession
from llamavid.runtime.tensorrt.parity import EngineRunner, run_engine_graph, run_engine_language
from tests.clips import write_clip
from tests.conftest import RUNNER, golden_checkpoint
from tests.standin.cuda import Gpu
from tests.standin.engines import stamp, write_engines
from tests.standin.install import Machine, install

BOTH = pytest.mark.parametrize("lowering", [Lowering.STATIC, Lowering.PRIMITIVE], ids=lambda each: each.value)


@pytest.fixture(scope="session")
def mixed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame graphs in float32, the language model in float16: tokens change their type between."""
    folder = tmp_path_factory.mktemp("bundles") / "mixed"
    options = ExportOptions(precision="fp32", llm_precision="fp16")
    export_bundle(golden_checkpoint("short-video"), folder, runner=RUNNER, options=options)
    return folder


@BOTH
@pytest.mark.parametrize("which", ["short_bundle", "long_bundle", "int4_bundle", "mixed_bundle"])
def test_a_question_has_the_same_answer_in_every_precision(
    machine: Machine, which: str, lowering: Lowering, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = shutil.copytree(request.getfixturevalue(which), tmp_path / "bundle")
    write_engines(folder, lowering=lowering, frames=2, prefill=32)
    stamp(folder, machine.device)
    clip = write_clip(tmp_path / "clip.mp4", frames=75)
    said = {}
    for on in ("cpu", "a100"):
        with VideoSession.open(folder, on=on, threads=1) as session:
            session.watch(clip)
            said[on] = session.ask("What happens?", max_new_tokens=6)
    assert said["cpu"].prompt_tokens == said["a100"].prompt_tokens
    if which != "int4_bundle":  # the CPU rounds activations to int8 there, an engine does not
        assert said["cpu"].token_ids == said["a100"].token_ids
    assert machine.leaks() == {}


@BOTH
def test_verify_s_runs_are_onnx_runtime_s(late: Machine, bundle: Path, lowering: Lowering) -> None:
    """By functions that open an engine for one run. No stamp is needed: a stamp is given for these."""
    write_engines(bundle, lowering=lowering, prefill=32)
    opened = open_bundle(bundle)
    engines = open_engines(opened, "a100")
    random = np.random.default_rng(0)
    content = opened.manifest.graphs["content"]
    features = random.standard_normal((3, 65, 176)).astype(np.float16)
    found = run_engine_graph(engines, "content", {"features": features})
    expected = run_graph(bundle, content, {"features": features})
    assert np.array_equal(found["content_tokens"], expected["content_tokens"])
    language, entry = opened.manifest.model.language, opened.manifest.graphs["llm"]
    chunks = [
        (0.1 * random.standard_normal((1, tokens, language.hidden))).astype(np.float16)
        for tokens in (50, 1, 1, 1, 7, 1)
    ]
    found_logits = run_engine_language(engines, language, chunks)
    expected_logits = run_language(bundle, entry, language, chunks)
    assert found_logits.shape == (6, language.vocab_size)
    difference = np.linalg.norm(found_logits - expected_logits, axis=1)
    assert (difference < 2e-2 * np.linalg.norm(expected_logits, axis=1)).all()  # float16, other kernels
    assert late.leaks() == {}


def test_a_cache_that_is_rolled_back_reads_on_as_if_nothing_had_been_there(
    late: Machine, bundle: Path
) -> None:
    write_engines(bundle, lowering=Lowering.PRIMITIVE)
    opened = open_bundle(bundle)
    language = opened.manifest.model.language
    random = np.random.default_rng(0)
    first, wrong, right = (
        (0.1 * random.standard_normal((1, tokens, language.hidden))).astype(np.float16)
        for tokens in (20, 30, 5)
    )
    with EngineRunner(open_engines(opened, "a100")) as runner:
        decoder = runner.decoder(language)
        cache = decoder.new_cache(60)
        decoder.prefill(cache, first)
        decoder.prefill(cache, wrong)
        cache.length = 20
        rolled_back = decoder.prefill(cache, right)
        fresh = decoder.new_cache(60)
        decoder.prefill(fresh, first)
        assert np.array_equal(rolled_back, decoder.prefill(fresh, right))
    assert late.leaks() == {}


def test_verify_deserializes_nothing_that_was_built_for_another_device(
    late: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engines(bundle)
    engines = open_engines(open_bundle(bundle), "a100")
    machine = install(monkeypatch, Gpu(capability=(8, 7)))
    with pytest.raises(DeviceError, match=r"capability 8.0; expected 8.7"):
        EngineRunner(engines)
    assert machine.counts.deserialized == 0


def test_bfloat16_is_rounded_to_the_nearest_even_and_comes_back() -> None:
    values = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 0.1, 0.0, np.inf], np.float32)
    bits = as_elements(values, DType.BFLOAT16)
    expected = [1.0, -2.5, 1.0, 1 + 2**-6, 0.10009765625, 0.0, np.inf]  # two ties, both to even
    assert bits.dtype == np.uint16
    assert as_floats(bits, DType.BFLOAT16).tolist() == expected
    assert np.isnan(as_floats(as_elements(np.array([np.nan]), DType.BFLOAT16), DType.BFLOAT16)[0])
    assert as_elements(bits, DType.BFLOAT16) is bits
