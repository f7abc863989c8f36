"""A star, not a web: who may import whom, and what a device never loads.

The first half reads the imports out of the source; the second runs the command line in a fresh Python and
looks at what was loaded, and how long it took.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clips import write_clip

ROOT = Path(__file__).parent.parent

# Room -> the rooms it may import. "words" are the modules right inside llamavid/, and llamavid/formats/.
TABLE = {
    "words": {"words"},
    "model": {"model", "words"},
    "train": {"train", "model", "words"},
    "calibration": {"calibration", "model", "words"},
    "export": {"export", "model", "words"},
    "runtime": {"runtime", "words"},
    "cli": {"cli", "words", "model", "train", "calibration", "export", "runtime"},
}
# What else the words and the runtime may import: the device's dependencies and no other.
THIRD_PARTY = {
    "llamavid/console.py": {"click", "rich"},
    "llamavid/commands/profile_plot.py": {"matplotlib"},  # an extra; asked for before it is imported
    "words": {"numpy", "sentencepiece", "tokenizers"},
    "runtime": {"numpy", "onnxruntime", "av", "PIL", "decord", "cv2", "gi"},
    "runtime/tensorrt": {"numpy", "cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"},
    "cli": {"click"},
}
# One folder of the runtime runs in an environment of its own, TensorRT-LLM's, which is made of these; nothing
# else imports it but a command that is asked for a TensorRT-LLM Vicuna.
OWN_ENVIRONMENT = {"runtime/tensorrt_llm/": {"torch", "tensorrt_llm"}}
# What an answer on the CPU does not load either.
NEVER_ON_THE_CPU = ["cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "llamavid.runtime.tensorrt"]
NEVER_ON_A_DEVICE = ["torch", "transformers", "onnx", "safetensors"]
LINKS = {
    "export": "../export",
    "runtime": "../runtime",
    "calibration": "../calibration",
    "cli.py": "../cli.py",
}


def sources() -> dict[str, Path]:
    """Every module of ours by its path from the root, each once: not through the links."""
    found = [ROOT / "cli.py"]
    for folder in ("llamavid", "export", "runtime", "calibration"):
        found += [Path(at, name) for at, _, names in os.walk(ROOT / folder) for name in names]
    return {
        file.relative_to(ROOT).as_posix(): file
        for file in found
        if file.suffix == ".py" and not file.is_symlink()
    }


def room_of_file(name: str) -> str:
    first, *rest = name.split("/")
    if name in ("cli.py", "llamavid/__main__.py") or name.startswith("llamavid/commands/"):
        return "cli"
    if first != "llamavid":
        return first
    return rest[0] if len(rest) > 1 and rest[0] in TABLE else "words"


def room_of_module(name: str) -> str:
    """Of `llamavid.export.pack`: export. Of `llamavid.errors` and `llamavid`: words."""
    _, _, inner = name.partition(".")
    room = {"commands": "cli"}.get(inner.split(".")[0], inner.split(".")[0])
    return room if room in TABLE else "words"


def imports(file: Path) -> Iterator[str]:
    """Full names of what a module imports anywhere in it, in functions and under TYPE_CHECKING too.

    A module that imports by a string holds a table of such names, in a constant whose own ends in MODULES.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("MODULES"):
            found = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            yield from (name for name in found if isinstance(name, str))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "llamavid":
                yield from (f"llamavid.{alias.name}" for alias in node.names)


MODULES = sources()


def test_a_module_imports_only_the_rooms_that_the_table_allows() -> None:
    offenders = [
        (name, module)
        for name, file in MODULES.items()
        for module in imports(file)
        if module.split(".")[0] == "llamavid" and room_of_module(module) not in TABLE[room_of_file(name)]
    ]
    assert offenders == []


def test_our_modules_are_imported_by_their_full_name() -> None:
    rooms = {*TABLE, ""}  # "" is what a relative import begins with
    offenders = [(n, m) for n, file in MODULES.items() for m in imports(file) if m.split(".")[0] in rooms]
    assert offenders == []


def test_words_runtime_and_command_line_import_only_what_a_device_has() -> None:
    offenders = []
    for name, file in MODULES.items():
        folder = name.rpartition("/")[0]
        allowed = THIRD_PARTY.get(name) or THIRD_PARTY.get(folder) or THIRD_PARTY.get(room_of_file(name))
        if allowed is not None:
            own = next((own for folder, own in OWN_ENVIRONMENT.items() if name.startswith(folder)), set())
            allowed = allowed | own
            roots = {module.split(".")[0] for module in imports(file)}
            offenders += [(name, root) for root in roots - allowed - sys.stdlib_module_names - {"llamavid"}]
    assert offenders == []


def test_no_other_room_of_the_runtime_imports_one_that_has_an_environment_of_its_own() -> None:
    offenders = [
        (name, module)
        for name, file in MODULES.items()
        for folder in OWN_ENVIRONMENT
        if not name.startswith((folder, "llamavid/commands/"))
        for module in imports(file)
        if module.startswith(f"llamavid.{folder.strip('/').replace('/', '.')}")
    ]
    assert offenders == []


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_the_rooms_at_the_top_are_linked_into_the_package(link: str, target: str) -> None:
    assert os.readlink(ROOT / "llamavid" / link) == target
    assert (ROOT / "llamavid" / link).exists()


# What runs: a fresh Python, as on a device.

NEVER = [*NEVER_ON_A_DEVICE, *NEVER_ON_THE_CPU]
REPORT_LOADED = f"import sys, json; print(json.dumps([n for n in {NEVER} if n in sys.modules]))"
# None in `sys.modules` is what makes Python itself say that a package is not installed.
UNINSTALL = f"import sys; sys.modules.update(dict.fromkeys({NEVER_ON_A_DEVICE}))"


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLAMAVID_PIXELS": "numpy"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60
    )


def takes_less_than(seconds: float, *arguments: str | Path) -> bool:
    """Of several runs the fastest counts: it is what the work takes when nothing else gets in its way."""
    for _ in range(10):
        start = time.perf_counter()
        assert python(*arguments).returncode == 0
        if time.perf_counter() - start < seconds:
            return True
    return False


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=50)


def test_importing_the_session_loads_nothing_of_the_workstation() -> None:
    done = python("-c", f"import llamavid.runtime.session\n{REPORT_LOADED}")
    assert json.loads(done.stdout) == []


def test_the_tensorrt_llm_runner_loads_torch_only_when_a_vicuna_is_opened() -> None:
    done = python("-c", f"import llamavid.runtime.tensorrt_llm.vicuna\n{REPORT_LOADED}")
    assert json.loads(done.stdout) == []


def test_a_whole_answer_loads_nothing_of_the_workstation(short_bundle: Path, clip: Path) -> None:
    ask = f"main(['ask', {str(short_bundle)!r}, {str(clip)!r}, 'What?', '--max-new-tokens', '2', '--json'])"
    code = f"from llamavid.cli import main\ntry: {ask}\nexcept SystemExit as end: assert end.code == 0"
    done = python("-c", f"{code}\n{REPORT_LOADED}")
    answer, loaded = done.stdout.splitlines()
    assert len(json.loads(answer)["token_ids"]) == 2
    assert json.loads(loaded) == []


def test_an_answer_needs_nothing_of_the_workstation_installed(short_bundle: Path, clip: Path) -> None:
    ask = f"main(['ask', {str(short_bundle)!r}, {str(clip)!r}, 'What?', '--max-new-tokens', '2'])"
    done = python("-c", f"{UNINSTALL}\nfrom llamavid.cli import main\n{ask}")
    assert done.returncode == 0, done.stderr


def test_an_answer_leaves_nothing_in_the_home_folder(
    tmp_path: Path, short_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.29 began to report models to its maker: its import alone wrote a device's identity here.
    A thousand mutated videos, each asked about in an empty home, found it."""
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    done = python("-m", "llamavid", "ask", short_bundle, clip, "What?", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_export_says_what_to_install_where_the_workstation_is_missing(tmp_path: Path) -> None:
    export = f"main(['export', '.', '-o', {str(tmp_path / 'bundle')!r}])"
    done = python("-c", f"{UNINSTALL}\nfrom llamavid.cli import main\n{export}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torch,")
    assert 'pip install "llamavid[export]"' in line


COMMANDS = [
    [],
    *(
        [name]
        for name in (
            "ask",
            "build",
            "calibrate",
            "chat",
            "demo",
            "doctor",
            "eval",
            "export",
            "features",
            "heatmap",
        )
    ),
    *([name] for name in ("export-llm", "profile", "verify")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_neither_numpy_nor_onnxruntime(command: list[str]) -> None:
    code = (
        f"from llamavid.cli import main\nmain({[*command, '--help']}, standalone_mode=False)\n"
        "import sys; assert not {'numpy', 'onnxruntime', 'torch'} & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_help_answers_at_once() -> None:
    assert takes_less_than(0.3, "-m", "llamavid", "--help")


def test_the_tiny_bundle_answers_within_a_second_and_a_half(short_bundle: Path, clip: Path) -> None:
    asked = ("ask", short_bundle, clip, "What happens?", "--max-new-tokens", "12")
    assert takes_less_than(1.5, "-m", "llamavid", *asked)
