"""`--on` and `--allow-cpu`, as they are typed. The GPU is `tests.standin`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from llamavid.bundle import file_sha256
from llamavid.cli import main
from llamavid.contract import Lowering
from llamavid.embedded import sample_clip
from llamavid.engines import ENGINES, STAMP
from llamavid.runtime.session import Answer
from tests.runtime.tensorrt.conftest import QUESTION
from tests.standin.engines import stamp, write_engines
from tests.standin.install import Machine

Make = Callable[..., Path]


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_ask_on_a100_says_what_the_cpu_says(late: Machine, stamped: Make, on_cpu: Answer) -> None:
    folder = stamped(late)
    words = ("ask", folder, sample_clip(), QUESTION, "--fps", "2", "--max-new-tokens", "24", "--json")
    done = typed(*words, "--on", "a100")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["token_ids"] == list(on_cpu.token_ids)
    assert late.counts.runs["llm.static.onnx"] > 0
    assert late.leaks() == {}


@pytest.mark.parametrize("command", ["ask", "eval", "heatmap", "stream"])
def test_every_command_that_answers_refuses_unstamped_engines_in_one_line(
    late: Machine, bundle: Path, tmp_path: Path, command: str
) -> None:
    write_engines(bundle)
    data = tmp_path / "data.json"
    asked = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    data.write_text(json.dumps([{"id": "1", "video": str(sample_clip()), "conversations": asked}]))
    words: dict[str, tuple[str | Path, ...]] = {
        "ask": (sample_clip(), "What?"),
        "eval": (data,),
        "heatmap": (sample_clip(), "What?", "-o", tmp_path / "heat.png"),
        "stream": (sample_clip(), "--ask", "What?"),
    }
    done = typed(command, bundle, *words[command])
    assert done.exit_code == 1
    line = done.stderr.strip().splitlines()[-1]
    assert "was never compared with the model here" in line
    for way_out in ("llamavid verify", "--on cpu", "--allow-cpu"):
        assert way_out in line
    assert late.counts.deserialized == 0


def test_the_allowed_cpu_is_told_of_once_on_stderr(late: Machine, stamped: Make) -> None:
    folder = stamped(late)
    (folder / "engines" / "a100" / STAMP).unlink()
    done = typed("ask", folder, sample_clip(), "What?", "--max-new-tokens", "2", "--allow-cpu")
    assert done.exit_code == 0
    assert done.stderr.count("The CPU answers, not an engine") == 1
    assert late.counts.deserialized == 0


def test_doctor_tells_which_engines_would_answer(late: Machine, stamped: Make) -> None:
    folder = stamped(late)
    write_engines(folder, target="h200", capability=(9, 0))
    found = {item["subject"]: item for item in json.loads(typed("doctor", folder, "--json").stdout)}
    assert found["GPU"]["ok"]
    assert "Software A100, compute capability 8.0" in found["GPU"]["text"]
    assert found["TensorRT"]["ok"]
    assert found["engines a100"]["ok"]
    assert not found["engines h200"]["ok"]
    assert "capability 9.0; expected 8.0" in found["engines h200"]["text"]
    assert late.counts.deserialized == 0


def miscompile(engines: Path, stage: str) -> None:
    """The engine gives its output negated."""
    file, said = engines / f"{stage}.engine", json.loads((engines / ENGINES).read_text())
    plan = json.loads(file.read_text())
    model = onnx.load(plan["onnx"], load_external_data=False)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["right" if name == output else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], [output]))
    wrong = Path(plan["onnx"]).with_name("wrong.onnx")  # beside its weights
    wrong.write_bytes(model.SerializeToString())
    file.write_text(json.dumps({**plan, "onnx": str(wrong)}))
    said["engines"][stage]["content"] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    (engines / ENGINES).write_text(json.dumps(said))


def test_a_set_that_differs_takes_no_stamp_from_one_that_agrees(
    late: Machine, short_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short_bundle, tmp_path / "bundle")
    for target in ("a100", "h200"):
        write_engines(folder, target=target, frames=2)
    miscompile(folder / "engines" / "a100", "content")
    done = typed("verify", folder)
    assert done.exit_code == 1
    assert "content (a100" in done.stderr
    assert not (folder / "engines" / "a100" / STAMP).exists()
    assert (folder / "engines" / "h200" / STAMP).exists()


@pytest.mark.parametrize("lowering", [Lowering.STATIC, Lowering.PRIMITIVE], ids=lambda each: each.value)
def test_engines_that_verify_stamps_answer(
    late: Machine, short_bundle: Path, tmp_path: Path, lowering: Lowering
) -> None:
    folder = shutil.copytree(short_bundle, tmp_path / "bundle")
    write_engines(folder, lowering=lowering, frames=2)
    asked = ("ask", folder, sample_clip(), "What?", "--max-new-tokens", "2")
    assert "never compared" in typed(*asked).stderr
    assert typed("verify", folder, "--target", "a100").exit_code == 0
    before = late.counts.runs[f"llm.{lowering.value}.onnx"]
    assert typed(*asked).exit_code == 0
    assert late.counts.runs[f"llm.{lowering.value}.onnx"] > before
    assert late.leaks() == {}


def test_a_set_that_fails_takes_no_other_set_s_stamp(
    late: Machine, short_bundle: Path, tmp_path: Path
) -> None:
    """A device may have a set of TensorRT and one of TensorRT-RTX, each right or wrong by itself."""
    folder = shutil.copytree(short_bundle, tmp_path / "bundle")
    wrong = write_engines(folder, target="a100", frames=2)
    right = write_engines(folder, target="b100", frames=2)
    stamp(folder, late.device)
    miscompile_vision(wrong, tmp_path)
    done = typed("verify", folder)
    assert done.exit_code == 1
    assert "differs from the model in vision" in done.stderr
    assert not (wrong / STAMP).exists()
    assert (right / STAMP).exists()


def miscompile_vision(engines: Path, scratch: Path) -> None:
    """The engine computes something else than its graph says; its set vouches for it all the same."""
    manifest = json.loads((engines / ENGINES).read_text())
    entry = manifest["engines"]["vision"]
    plan = json.loads((engines / entry["file"]).read_text())
    graph = Path(plan["onnx"])
    model = onnx.load(str(graph), load_external_data=False)
    for node in model.graph.node:
        node.op_type = "Relu" if node.op_type == "Gelu" else node.op_type
    shutil.copy(f"{graph}.data", scratch)
    plan["onnx"] = str(scratch / graph.name)
    Path(plan["onnx"]).write_bytes(model.SerializeToString())
    data = json.dumps(plan).encode()
    (engines / entry["file"]).write_bytes(data)
    entry["content"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (engines / ENGINES).write_text(json.dumps(manifest))
