"""`llamavid export-llm`, and the containers that its folders go to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llamavid.cli import main
from llamavid.vicuna_folder import read_note
from tests.conftest import GOLDEN

ROOT = Path(__file__).parent.parent
SHORT = GOLDEN / "short-video"
NEARBY = [
    *("--vision-tower", str(SHORT / "eva_vit_g.pth")),
    *("--text-tokenizer", str(SHORT / "bert-base-uncased")),
    *("--image-processor", str(SHORT / "image_processor")),
]


def export_llm(family: str, folder: Path, *options: str) -> Result:
    checkpoint = str(GOLDEN / family / "checkpoint")
    return CliRunner().invoke(main, ["export-llm", checkpoint, "-o", str(folder), *NEARBY, *options])


def refused(result: Result, code: int) -> str:
    """The one line that it ended with."""
    *before, line = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, "")
    assert not any("Traceback" in other for other in before)
    return line


def test_an_engine_checkpoint_ends_in_the_line_to_run_next(tmp_path: Path) -> None:
    result = export_llm("long-video", tmp_path / "v", "--tensor-parallel", "2", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert f"Next: trtllm-build --checkpoint_dir {tmp_path / 'v'} " in line
    assert "--gemm_plugin bfloat16" in line
    assert "CC BY-NC 4.0" in result.stderr
    names = {file.name for file in (tmp_path / "v").iterdir()}
    assert names == {
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
        "tokenizer.model",
        "vicuna.json",
    }


@pytest.mark.parametrize("words", [["--llm", "tensorrt-llm"], ["--llm=tensorrt-llm"]])
def test_build_with_another_runtime_s_language_model_is_the_same_command(
    words: list[str], tmp_path: Path
) -> None:
    typed = ["build", *words, str(SHORT / "checkpoint"), "-o", str(tmp_path / "built"), *NEARBY]
    assert CliRunner().invoke(main, typed).exit_code == 0
    assert export_llm("short-video", tmp_path / "exported").exit_code == 0
    for made in (tmp_path / "exported").iterdir():
        assert (tmp_path / "built" / made.name).read_bytes() == made.read_bytes()


@pytest.mark.parametrize("kind", ["engine", "pytorch", "huggingface"])
def test_json_prints_what_was_made(kind: str, tmp_path: Path) -> None:
    result = export_llm("short-video", tmp_path / "v", "--format", kind, "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    weights = sum(file.stat().st_size for file in (tmp_path / "v").glob("*.safetensors"))
    assert document["folder"] == str(tmp_path / "v")
    assert 0 < weights - document["size_bytes"] < 20_000  # the headers
    assert read_note(tmp_path / "v").format == document["format"] == kind


def test_the_pytorch_folder_carries_the_module_that_the_runner_registers(tmp_path: Path) -> None:
    result = export_llm("short-video", tmp_path / "v", "--format", "pytorch")
    assert result.exit_code == 0, result.stderr
    module = (ROOT / "runtime" / "tensorrt_llm" / "vicuna_module.py").read_text()
    assert (tmp_path / "v" / "llamavid_vicuna" / "__init__.py").read_text() == module
    architecture = json.loads((tmp_path / "v" / "config.json").read_text())["architectures"][0]
    assert f'@register_auto_model("{architecture}")' in module
    assert not re.search(r"^(from|import) llamavid", module, re.MULTILINE)  # a server has no llamavid


def test_fp8_for_an_a100_is_refused_with_what_it_has(tmp_path: Path) -> None:
    line = refused(export_llm("short-video", tmp_path / "v", "--quantize", "fp8"), 2)
    assert "compute capability 8.0; expected a GPU with fp8: --target l40s or h100 or h200" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--tensor-parallel", "2"),
        ("--quantize", "int8"),
        ("--kv-cache", "int8"),
        ("--int4-group", "64"),
        ("--target", "h200"),
    ],
    ids=" ".join,
)
def test_a_hugging_face_folder_is_neither_split_nor_quantized(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    line = refused(export_llm("short-video", tmp_path / "v", "--format", "huggingface", *options), 2)
    assert "for format huggingface" in line
    assert "--format engine" in line


def test_groups_without_int4_are_refused(tmp_path: Path) -> None:
    line = refused(export_llm("short-video", tmp_path / "v", "--quantize", "int8", "--int4-group", "64"), 2)
    assert "int4-group 64 with quantize int8; expected --quantize int4-awq" in line


def test_a_folder_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    assert export_llm("short-video", tmp_path / "v").exit_code == 0
    assert "--replace" in refused(export_llm("short-video", tmp_path / "v"), 1)
    assert export_llm("short-video", tmp_path / "v", "--format", "huggingface", "--replace").exit_code == 0
    assert read_note(tmp_path / "v").format == "huggingface"


# The containers.


def test_the_a100_container_has_the_version_that_the_package_names() -> None:
    pinned = re.search(r'"tensorrt-llm==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned
    recipe = (ROOT / "docker" / "a100" / "Dockerfile").read_text()
    assert f"version('tensorrt_llm') == '{pinned[1]}'" in recipe
    assert f"release:{pinned[1]}" in recipe


@pytest.mark.parametrize("jetpack", ["jp6", "jp7"])
def test_a_jetson_container_says_that_it_has_no_tensorrt_llm(jetpack: str) -> None:
    recipe = (ROOT / "docker" / f"jetson-{jetpack}" / "Dockerfile").read_text()
    assert "never supported Jetson after v0.12.0-jetson" in recipe
    installed = [line for line in recipe.splitlines() if not line.startswith("#")]
    assert not any("tensorrt_llm" in line or "tensorrt-llm" in line for line in installed)
