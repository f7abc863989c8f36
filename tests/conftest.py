"""One tiny real model for every test: recordings of the published code, and bundles of its checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from llamavid.bundle import MANIFEST, file_sha256
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.export.verify import Runner
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.runtime.parity import run_graph, run_language

GOLDEN = Path(__file__).parent / "golden"
RUNNER = Runner(run_graph, run_language)


@dataclass(frozen=True)
class Recording:
    """What the published implementation computed for one case."""

    family: str
    prompts: list[str]  # to the text decoder
    template: str
    prompt: str
    tensors: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]


def recording(family: str, case: str) -> Recording:
    words: dict[str, Any] = json.loads((GOLDEN / family / "cases" / f"{case}.json").read_text())
    tensors = load_file(GOLDEN / family / "cases" / f"{case}.safetensors")
    return Recording(family, words["text_decoder_prompts"], words["conversation"], words["prompt"], tensors)


def golden_checkpoint(family: str) -> Checkpoint:
    """Both families open with the short one's tower, BERT and constants: the movie case needs no other."""
    short = GOLDEN / "short-video"
    return open_checkpoint(
        GOLDEN / family / "checkpoint",
        vision_tower=short / "eva_vit_g.pth",
        text_tokenizer=short / "bert-base-uncased",
        image_processor=short / "image_processor",
    )


def largest_relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="session")
def short_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short-video recording's checkpoint as a float32 bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "short"
    export_bundle(golden_checkpoint("short-video"), folder, runner=RUNNER)
    return folder


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long-video recording's checkpoint (RoPE x16) as a float32 bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "long"
    export_bundle(golden_checkpoint("long-video"), folder, runner=RUNNER)
    return folder


@pytest.fixture(scope="session")
def int4_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame graphs in float16, language model in int4."""
    folder = tmp_path_factory.mktemp("bundles") / "int4"
    options = ExportOptions(precision="fp16", llm_precision="int4")
    export_bundle(golden_checkpoint("short-video"), folder, runner=RUNNER, options=options)
    return folder


@pytest.fixture
def earlier_bundle(short_bundle: Path, tmp_path: Path) -> Path:
    """The short bundle as it was made before context graphs told what they look at."""
    folder = shutil.copytree(short_bundle, tmp_path / "earlier")
    file = folder / "context.onnx"
    graph = onnx.load(str(file), load_external_data=False)
    del graph.graph.output[1:]
    file.write_bytes(graph.SerializeToString())
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["graphs"]["context"]["contract"]["outputs"][1:]
    manifest["parity"] = [row for row in manifest["parity"] if "(" not in row["against"]]
    manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
