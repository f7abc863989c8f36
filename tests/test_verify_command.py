"""`llamavid verify`: as it is typed, on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from llamavid.bundle import MANIFEST, file_sha256
from llamavid.cli import main
from llamavid.commands import verifying
from llamavid.embedded import sample_clip
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.golden import GOLDEN
from tests.conftest import RUNNER, golden_checkpoint


@pytest.fixture
def bundle(short_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(short_bundle, tmp_path / "bundle")


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, words)])


def refusal(done: Result, code: int = 1) -> str:
    """The one line that says why, on stderr."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stderr.strip().splitlines()[-1]


def sign_again(bundle: Path, name: str) -> None:
    """A changed file as the bundle's own: what a bug in our own export would leave."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    file = bundle / name
    manifest["files"][name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def break_graph(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    file = bundle / f"{graph}.onnx"
    model = onnx.load(str(file), load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    sign_again(bundle, file.name)


def relu_in_block_1(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name.startswith("blocks.1/") and node.op_type == "Gelu":
            node.op_type = "Relu"


def test_a_sound_bundle_passes_with_a_table_and_a_next_command(bundle: Path) -> None:
    done = typed(bundle)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "ONNX Runtime:"
    rows = [line for line in lines if line.startswith("ok ")]
    assert {row.split()[1] for row in rows} == {"vision", "content", "context", "llm"}
    assert all("<= " in row for row in rows)
    assert lines[-1] == (
        f"{bundle}: ONNX Runtime agrees with PyTorch in vision, content, context, llm. "
        f'Next: llamavid ask {bundle} VIDEO "question"'
    )
    assert "FAIL" not in done.stdout
    assert "vision, 2 frames" in done.stderr


def test_json_is_one_document(bundle: Path) -> None:
    done = typed(bundle, "--on", "cpu", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["passed"] is True
    (compared,) = document["compared"]
    assert compared["on"] == "ONNX Runtime"
    assert compared["stamped"] is False
    assert all(row["passed"] and row["reason"] for row in compared["rows"])


def test_a_wrong_graph_is_exit_1_and_every_failing_row_is_named(bundle: Path) -> None:
    break_graph(bundle, "vision", relu_in_block_1)
    done = typed(bundle)
    line = refusal(done)
    failing = [row for row in done.stdout.splitlines() if row.startswith("FAIL")]
    assert {row.split()[1] for row in failing} == {"vision"}
    assert (
        "vision (ONNX Runtime, PyTorch float32, 1 frame), vision (ONNX Runtime, PyTorch float32, 2 frames)"
        in line
    )
    assert "--bisect" in line
    assert "Next:" not in done.stdout


def test_bisect_names_the_block(bundle: Path) -> None:
    """Between the graph and its golden inputs a wrong block shows; between the graph and itself it cannot."""
    done = typed(bundle, "--bisect", "--json")
    assert done.exit_code == 0, done.output
    (compared,) = json.loads(done.stdout)["compared"]
    assert [each["graph"] for each in compared["bisected"]] == ["vision", "content", "context", "llm", "llm"]
    assert {each["first_wrong"] for each in compared["bisected"]} == {None}
    assert "blocks.1" in [block["block"] for block in compared["bisected"][0]["blocks"]]


def test_bisect_shows_each_block_s_own_error(bundle: Path) -> None:
    done = typed(bundle, "--bisect")
    assert done.exit_code == 0, done.output
    assert "vision, 3 frames: own error of each block, and the error so far" in done.stdout
    assert "no block goes wrong by itself" in done.stdout


def test_bisect_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert 'onnx not installed. Run: pip install "llamavid[export]".' in refusal(typed(bundle, "--bisect"))


def test_a_language_model_in_bfloat16_answers_and_is_compared_on_the_cpu(tmp_path: Path) -> None:
    """Its weights are bfloat16 and its products float32, which ONNX Runtime has kernels for."""
    folder, options = tmp_path / "bundle", ExportOptions(llm_precision="bf16")
    export_bundle(golden_checkpoint("short-video"), folder, runner=RUNNER, options=options)
    done = typed(folder, "--on", "cpu", "--bisect", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    (document,) = json.loads(done.stdout)["compared"]
    assert "llm" in {row["graph"] for row in document["rows"]}
    assert {each["first_wrong"] for each in document["bisected"] if each["graph"] == "llm"} == {None}
    asked = ["ask", str(folder), str(sample_clip()), "What?", "--max-new-tokens", "2"]
    assert CliRunner().invoke(main, asked).exit_code == 0


def test_an_earlier_bundle_says_to_export_again(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["files"][GOLDEN]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    assert "has no golden inputs" in refusal(typed(bundle))


def test_golden_inputs_of_another_model_are_one_line(bundle: Path) -> None:
    with np.load(bundle / GOLDEN) as file:
        arrays = dict(file)
    arrays["logits"] = arrays["logits"][:, :-1]
    np.savez(bundle / GOLDEN, **arrays)
    sign_again(bundle, GOLDEN)
    assert "holds no golden inputs" in refusal(typed(bundle))


def test_an_error_that_is_no_number_is_null_in_json(bundle: Path) -> None:
    def infinite(model: onnx.ModelProto) -> None:
        (last,) = (node for node in model.graph.node if node.output[0] == "content_tokens")
        zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")
        model.graph.initializer.append(zero)
        last.op_type = "Div"
        last.input.append("zero")

    break_graph(bundle, "content", infinite)
    done = typed(bundle, "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout, parse_constant=pytest.fail)
    assert document["passed"] is False
    assert {row["graph"] for row in document["compared"][0]["rows"] if not row["passed"]} == {"content"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "a100", "--on", "cpu"), "--target with --on cpu"),
        (("--target", "b200"), "target 'b200'; expected a100"),
        (("--on", "gpu"), "'gpu' is not 'cpu'"),
    ],
)
def test_what_was_typed_wrong_is_exit_2(bundle: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refusal(typed(bundle, *words), code=2)


@pytest.mark.parametrize("target", ["a100", "this"])
def test_a_target_without_engines_says_how_to_build_them(bundle: Path, target: str) -> None:
    assert f"llamavid build {bundle} --target {target}" in refusal(typed(bundle, "--target", target))


def test_a_damaged_bundle_is_not_verified(bundle: Path) -> None:
    (bundle / "llm.onnx.data").write_bytes(b"x")
    assert "has 1 bytes" in refusal(typed(bundle))


def test_where_engines_answer_the_cpu_needs_no_memory(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Jetson holds the engine of a language model, and not its ONNX file beside it."""
    from llamavid.bundle import open_bundle
    from llamavid.runtime.parity import onnx_subject

    opened = open_bundle(bundle)
    largest = max(opened.manifest.files[file].size for file in opened.manifest.graphs["vision"].files)
    monkeypatch.setattr("llamavid.memory.available_memory", lambda: largest - 1)
    left = verifying._that_fits(opened, onnx_subject(opened))
    assert "vision" not in left.stages
    assert "content" in left.stages
    assert "vision needs" in capsys.readouterr().err
