"""`llamavid build` on the embedded bundle, with TensorRT-RTX for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamavid.bundle import MANIFEST, Bundle, ParityRow, open_bundle
from llamavid.embedded import default_bundle
from llamavid.engines import Device, EngineSet, engine_sets, open_engines, require_stamp, write_stamp
from llamavid.errors import BundleError, DeviceError, UsageError
from llamavid.export import engine_plan
from llamavid.export.job import BuildOptions, Job
from llamavid.export.lock import locked
from llamavid.export.package import write_package
from llamavid.export.preflight import GIB, cache_bytes, need_of, require_memory
from llamavid.export.profiles import Sizes, profiles_of
from llamavid.export.site import Site, why_not
from llamavid.export.tensorrt_library import TensorRt
from llamavid.export.timing_cache import TimingCacheFile
from llamavid.export.to_engine import Outcome, build_engines
from llamavid.targets import Library, find_target
from tests.export.rtx import tensorrt_rtx

ROOT = Path(__file__).parent.parent.parent
TARGET = find_target("rtx-sm86")
CONTENT = BuildOptions(stages=("content",))
TWO = BuildOptions(stages=("vision", "content"))


@pytest.fixture
def trt() -> TensorRt:
    return tensorrt_rtx()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The embedded bundle, where engines can be put beside it."""
    return open_bundle(shutil.copytree(default_bundle(), tmp_path / "bundle"))


@pytest.fixture
def device(trt: TensorRt) -> Device:
    return Device("GeForce RTX 3080", (8, 6), "580.95", Library.TENSORRT_RTX, trt.version, 10 << 30)


def built(bundle: Bundle, trt: TensorRt, options: BuildOptions = CONTENT) -> Outcome:
    return build_engines(Job(bundle, TARGET, trt, options))


def changed(bundle: Bundle, graph: str, **fields: Any) -> Bundle:
    """The bundle whose manifest says something else of a graph."""
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    manifest["graphs"][graph].update(fields)
    (bundle.folder / MANIFEST).write_text(json.dumps(manifest))
    return open_bundle(bundle.folder)


def llamavid(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamavid", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        **more,
    )


def build_in_another_process(bundle: Bundle, during: str, *, before: str = "") -> Any:
    """Builds vision and content there. `during` is run at every step, with `what` and `done` at hand."""
    code = f"""
import os, resource, signal, sys
from llamavid.bundle import open_bundle
from llamavid.export.job import BuildOptions, Job
from llamavid.export.tensorrt_library import open_library
from llamavid.export.to_engine import build_engines
from llamavid.targets import find_target
target = find_target({TARGET.name!r})
def during(what, done, total):
    {during}
job = Job(open_bundle({str(bundle.folder)!r}), target, open_library(target.library),
          BuildOptions(stages=("vision", "content")))
{before}
build_engines(job, on_progress=during)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )


def left_over(bundle: Bundle) -> list[str]:
    """Names in the engines' folder, without sets and locks."""
    names = (file.name for file in (bundle.folder / "engines").iterdir())
    return sorted(name for name in names if name != TARGET.name and not name.startswith(".lock-"))


# A set, and what is taken over.


def test_a_built_set_opens_with_every_byte_vouched_for(bundle: Bundle, trt: TensorRt) -> None:
    outcome = built(bundle, trt, TWO)
    opened = open_engines(bundle, TARGET.name)
    assert [engine.stage for engine in outcome.engines if engine.built] == ["vision", "content"]
    assert opened.manifest.engines.keys() == {"vision", "content"}
    assert opened.manifest.version == trt.version
    assert opened.manifest.engines["vision"].profiles[0].largest == {"pixels": (32, 3, 112, 112)}
    assert left_over(bundle) == []
    assert engine_sets(bundle) == (TARGET.name,)


def test_what_is_equal_is_not_built_again_and_keeps_its_stamp(
    bundle: Bundle, trt: TensorRt, device: Device
) -> None:
    built(bundle, trt)
    write_stamp(open_engines(bundle, TARGET.name), device, [passed_row()])
    again = built(bundle, trt)
    assert [engine.built for engine in again.engines] == [False]
    require_stamp(open_engines(bundle, TARGET.name), device)


def test_a_set_that_changed_loses_its_stamp(bundle: Bundle, trt: TensorRt, device: Device) -> None:
    built(bundle, trt)
    write_stamp(open_engines(bundle, TARGET.name), device, [passed_row()])
    built(bundle, trt, TWO)
    assert not (bundle.folder / "engines" / TARGET.name / "stamp.json").exists()


def passed_row() -> ParityRow:
    return ParityRow("content", "fp16", "PyTorch", 1e-4, 1e-4, 1e-3, "a test")


def test_other_shapes_are_another_engine(bundle: Bundle, trt: TensorRt) -> None:
    first = built(bundle, trt)
    other = built(bundle, trt, replace(CONTENT, sizes=Sizes(frames=(1, 2, 4))))
    assert other.engines[0].built
    assert other.engines[0].file != first.engines[0].file


def test_another_way_to_build_is_another_engine(
    bundle: Bundle, trt: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade that builds otherwise, engines of before are not taken over."""
    built(bundle, trt)
    monkeypatch.setattr(engine_plan, "RECIPE", engine_plan.RECIPE + 1)
    assert [engine.built for engine in built(bundle, trt).engines] == [True]


def test_force_builds_what_could_be_taken_over(bundle: Bundle, trt: TensorRt) -> None:
    built(bundle, trt)
    assert built(bundle, trt, replace(CONTENT, force=True)).engines[0].built


def test_a_graph_built_alone_leaves_the_others_in_the_set(bundle: Bundle, trt: TensorRt) -> None:
    built(bundle, trt, TWO)
    only = replace(CONTENT, sizes=Sizes(frames=(1, 1, 1)))
    built(bundle, trt, only)
    assert open_engines(bundle, TARGET.name).manifest.engines.keys() == {"vision", "content"}


def test_a_damaged_engine_is_not_taken_over(bundle: Bundle, trt: TensorRt) -> None:
    file = built(bundle, trt).folder / open_engines(bundle, TARGET.name).manifest.engines["content"].file
    flip_a_byte(file)
    assert built(bundle, trt).engines[0].built
    assert open_set(bundle)


@pytest.mark.parametrize("contents", ["{", None])
def test_a_set_whose_list_is_damaged_or_gone_is_built_again(
    bundle: Bundle, trt: TensorRt, contents: str | None
) -> None:
    file = built(bundle, trt).folder / "engines.json"
    file.unlink()
    if contents:
        file.write_text(contents)
    assert built(bundle, trt).engines[0].built
    assert open_set(bundle)


def test_a_folder_of_something_else_is_refused_before_anything_is_built(
    bundle: Bundle, trt: TensorRt
) -> None:
    notes = bundle.folder / "engines" / TARGET.name / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    steps: list[str] = []
    with pytest.raises(BundleError, match=r"holds notes\.txt, which is no part .* Move .* away"):
        build_engines(Job(bundle, TARGET, trt, CONTENT), on_progress=lambda what, *done: steps.append(what))
    assert (notes.read_text(), steps) == ("mine", [])


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def open_set(bundle: Bundle) -> EngineSet:
    return open_engines(bundle, TARGET.name)


# Builds that end early, and two at once.


def test_a_small_disk_is_told_before_anything_is_built_and_is_enough_for_nothing(
    bundle: Bundle, trt: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(bundle.folder)._replace(free=1_000_000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DeviceError, match=r"engines has 0\.0 GB free; expected 0\.0 GB for the engines"):
            built(bundle, trt)
    built(bundle, trt)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert not built(bundle, trt).engines[0].built


def test_a_killed_build_goes_on_with_the_engines_it_had_finished(bundle: Bundle, trt: TensorRt) -> None:
    killed = build_in_another_process(
        bundle, "if what == 'build content': os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert engine_sets(bundle) == ()
    again = built(bundle, trt, TWO)
    assert {engine.stage: engine.built for engine in again.engines} == {"vision": False, "content": True}
    assert left_over(bundle) == []


def test_a_damaged_unfinished_build_is_not_gone_on_with(bundle: Bundle, trt: TensorRt) -> None:
    build_in_another_process(bundle, "if what == 'build content': os.kill(os.getpid(), signal.SIGKILL)")
    (finished,) = (bundle.folder / "engines" / f".built-{TARGET.name}").glob("*.engine")
    flip_a_byte(finished)
    assert all(engine.built for engine in built(bundle, trt, TWO).engines)


def test_ctrl_c_ends_a_build_in_the_middle_of_an_engine(bundle: Bundle, trt: TensorRt) -> None:
    """The library is C++: an exception through it would be its end, so it is asked to stop."""
    stopped = build_in_another_process(bundle, "if done == 3: os.kill(os.getpid(), signal.SIGINT)")
    assert "KeyboardInterrupt" in stopped.stderr
    assert stopped.returncode in (1, -signal.SIGINT)
    assert not list((bundle.folder / "engines").rglob("*.engine"))
    assert built(bundle, trt, TWO).engines[0].built


def test_a_full_disk_is_one_line_and_leaves_no_half_engine(bundle: Bundle, trt: TensorRt) -> None:
    """A limit on the size of files is met in the middle of the first engine, as a full disk would be."""
    limit = 3 << 20
    full = build_in_another_process(
        bundle, "pass", before=f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    assert full.returncode == 1
    line = full.stderr.splitlines()[-1]
    assert "DeviceError: the disk is full: vision-" in line
    assert "Free some and run it again" in line
    assert not list((bundle.folder / "engines").rglob("*.engine"))
    assert engine_sets(bundle) == ()


@pytest.fixture
def other_build(bundle: Bundle) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the set's lock until it is told to let go."""
    lock = bundle.folder / "engines" / f".lock-{TARGET.name}"
    lock.parent.mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom llamavid.export.lock import locked\n"
        f"with locked(Path({str(lock)!r}), 'it', wait=False): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_of_two_builds_at_once_the_second_names_the_first(
    bundle: Bundle, trt: TensorRt, other_build: subprocess.Popen[str]
) -> None:
    with pytest.raises(DeviceError, match=rf"process {other_build.pid} is at work on .*--wait"):
        built(bundle, trt)


def test_the_second_build_waits_where_it_is_told_to(
    bundle: Bundle, trt: TensorRt, other_build: subprocess.Popen[str]
) -> None:
    command = ("build", bundle.folder, "--target", TARGET.name, "--graph", "content", "--wait")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "llamavid", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2)
    other_build.communicate("")
    assert waiting.wait(60) == 0
    assert open_set(bundle).manifest.engines.keys() == {"content"}


def test_a_lock_ends_with_its_process(tmp_path: Path, other_build: subprocess.Popen[str]) -> None:
    other_build.kill()
    other_build.wait()
    with locked(tmp_path / "bundle" / "engines" / f".lock-{TARGET.name}", "it", wait=False):
        pass


# What cannot be built, in our words.


def test_a_precision_that_the_target_lacks_is_said_before_anything_is_built(
    bundle: Bundle, trt: TensorRt
) -> None:
    of_fp8 = changed(bundle, "content", precision="fp8")
    with pytest.raises(DeviceError, match="graph content is in fp8, which rtx-sm86 does not have; expected"):
        built(of_fp8, trt)


def test_turing_has_no_float32_in_tensorrt_rtx(bundle: Bundle, trt: TensorRt) -> None:
    of_fp32 = changed(bundle, "content", precision="fp32")
    with pytest.raises(DeviceError, match="in fp32, which rtx-sm75 does not have; expected fp16, int8"):
        build_engines(Job(of_fp32, find_target("rtx-sm75"), trt, CONTENT))


def test_a_bundle_without_the_language_graph_says_how_to_get_one(bundle: Bundle, trt: TensorRt) -> None:
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    for graph in ("llm.static", "llm.primitive"):
        manifest["graphs"].pop(graph, None)
    manifest["parity"] = [row for row in manifest["parity"] if row["graph"] in manifest["graphs"]]
    (bundle.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"no graph llm.static, .* Export it again"):
        built(open_bundle(bundle.folder), trt, BuildOptions())


@pytest.mark.parametrize(
    ("option", "lacks"), [("version_compatible", "its own version"), ("hardware_compatible", "not have it")]
)
def test_what_tensorrt_rtx_cannot_do_is_a_usage_error_that_names_it(
    bundle: Bundle, trt: TensorRt, option: str, lacks: str
) -> None:
    with pytest.raises(UsageError, match=rf"--{option.replace('_', '-')} with TensorRT-RTX 1.*{lacks}"):
        built(bundle, trt, replace(CONTENT, **{option: True}))


@pytest.mark.parametrize("frames", [(2, 1, 3), (0, 1, 2)])
def test_sizes_out_of_order_are_a_usage_error(frames: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=f"frames {','.join(map(str, frames))}; expected"):
        Sizes(frames=frames)


def test_a_cache_longer_than_the_context_is_a_usage_error(bundle: Bundle) -> None:
    model = bundle.manifest.model
    contract = bundle.manifest.graphs["llm"].contract
    with pytest.raises(UsageError, match="at most 4096, the model's context length"):
        profiles_of(contract, model, Sizes(cache=(1, 2, 4097)))


def test_a_language_model_has_profiles_to_read_and_to_write(bundle: Bundle) -> None:
    prefill, decode = profiles_of(bundle.manifest.graphs["llm"].contract, bundle.manifest.model, Sizes())
    assert prefill.largest["inputs_embeds"] == (1, 512, 192)
    assert decode.smallest["inputs_embeds"] == decode.largest["inputs_embeds"] == (1, 1, 192)
    assert decode.smallest["past.0.key"] == (1, 6, 256, 32)
    assert decode.largest["past.0.key"] == (1, 6, 4096, 32)
    # float16; 4 layers, keys and values, 6 heads of 32
    assert cache_bytes(bundle.manifest.graphs["llm"].contract, decode.largest) == 4 * 2 * 6 * 4096 * 32 * 2


def test_a_cache_of_one_length_is_the_longest_that_was_asked_for(bundle: Bundle) -> None:
    contract, model = bundle.manifest.graphs["llm"].contract, bundle.manifest.model
    for sizes, length in ((Sizes(), 4096), (Sizes(cache=(256, 512, 1024)), 1024)):
        for profile in profiles_of(contract, model, sizes, static=True):
            ends = (profile.smallest, profile.tuned, profile.largest)
            assert {shapes["past.0.key"][2] for shapes in ends} == {length}


def test_no_more_tokens_are_read_at_once_than_the_cache_holds(bundle: Bundle, trt: TensorRt) -> None:
    """TensorRT-RTX refuses such a profile, in words about its own layers."""
    small = BuildOptions(stages=("llm",), sizes=Sizes(prefill=512, cache=(64, 64, 64)))
    built(bundle, trt, small)
    (profile,) = open_set(bundle).manifest.engines["llm"].profiles
    assert profile.largest["inputs_embeds"][1] == profile.largest["past.0.key"][2] == 64


def test_a_language_model_is_built_and_no_larger_than_its_weights(
    short_bundle: Path, trt: TensorRt, tmp_path: Path
) -> None:
    """With a profile to read and one to write, TensorRT-RTX stored the weights twice."""
    opened = open_bundle(shutil.copytree(short_bundle, tmp_path / "short"))
    outcome = built(opened, trt, BuildOptions(stages=("llm",)))
    weights = opened.manifest.files[opened.manifest.graphs["llm.static"].weights_file].size
    assert outcome.manifest.engines["llm"].graph == "llm.static"
    assert outcome.engines[0].size < 1.2 * weights + 4e6  # and kernels


def test_too_little_memory_is_said_with_both_numbers() -> None:
    need = need_of({"llm": 13 * GIB}, {"llm"}, cache_bytes=0)
    with pytest.raises(DeviceError, match=r"needs about \d+\.\d GiB of memory; 8.0 GiB are available"):
        require_memory(need, 8 * GIB, device=None)


def test_too_small_a_gpu_is_said_with_both_numbers(device: Device) -> None:
    need = need_of({"llm": 13 * GIB}, {"llm"}, cache_bytes=2 * GIB)
    with pytest.raises(DeviceError, match=r"needs? about 16.3 GiB of GeForce RTX 3080's memory; 10.0 GiB"):
        require_memory(need, 100 * GIB, device=device)


# Where this machine cannot build for a target.

HERE = Device("A100-SXM4-40GB", (8, 0), "580.95", Library.TENSORRT, "10.16.1.11", 40 << 30)
WITH_TENSORRT = Site({Library.TENSORRT: "10.16.1.11"}, {}, HERE, machine="x86_64")


@pytest.mark.parametrize(
    ("target", "site", "why"),
    [
        ("a100", WITH_TENSORRT, ""),
        ("h200", WITH_TENSORRT, r"builds for the GPU that is there, A100-SXM4-40GB \(8.0\); h200 is 9.0"),
        ("orin-jp6", WITH_TENSORRT, "orin-jp6 has a processor aarch64, this machine x86_64"),
        ("a100", replace(WITH_TENSORRT, device=None), "builds on the very GPU that engines are for"),
        ("a100", Site({}, {}, None, machine="x86_64"), "TensorRT is not installed"),
        ("a100", replace(WITH_TENSORRT, versions={Library.TENSORRT: "8.6.1"}), "takes TensorRT 10.3 to 11.x"),
        ("rtx-sm120", Site({Library.TENSORRT_RTX: "1.7.1"}, {}, None, machine="x86_64"), ""),
        ("rtx-sm120", Site({Library.TENSORRT_RTX: "1.7.1"}, {}, None, machine="aarch64"), "has a processor"),
    ],
)
def test_why_a_machine_cannot_build_is_one_line(target: str, site: Site, why: str) -> None:
    found = why_not(find_target(target), site)
    assert (why in found.replace("(", r"\(").replace(")", r"\)")) if why else found == ""
    assert "\n" not in found


def test_a_package_is_a_bundle_that_builds_to_the_same_engines(
    bundle: Bundle, trt: TensorRt, tmp_path: Path
) -> None:
    write_package(bundle, TARGET, tmp_path / "package", command="llamavid build . --target rtx-sm86")
    package = open_bundle(tmp_path / "package")
    assert package.digest == bundle.digest
    assert [e.file for e in built(package, trt).engines] == [e.file for e in built(bundle, trt).engines]


def test_a_package_names_a_bundle_that_was_called_a_dot(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.folder)
    write_package(open_bundle("."), TARGET, tmp_path / "package", command="llamavid build .")
    assert "the engines of bundle for rtx-sm86" in (tmp_path / "package" / "BUILD.txt").read_text()


def test_a_package_replaces_an_older_one_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    for _ in range(2):
        write_package(bundle, TARGET, tmp_path / "package", command="again")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(BundleError, match="holds something that is not a build package"):
        write_package(bundle, TARGET, tmp_path / "mine", command="")


# The command.


def test_the_configuration_comes_first_and_the_duration_last(bundle: Bundle, trt: TensorRt) -> None:
    done = llamavid("build", bundle.folder, "--target", "rtx-sm120", "--graph", "content")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    names = [line.split("  ")[0] for line in said[:10]]
    assert names == [
        *("bundle", "target", "library", "built on", "precision", "workspace"),
        *("flags", "memory", "disk", "content frames"),
    ]
    assert said[10] == "build content ..."
    assert f"TensorRT-RTX {trt.version}" in said[2]
    last = done.stdout.splitlines()[-1]
    assert " MB in " in last
    assert f"Next: llamavid verify {bundle.folder} --target rtx-sm120" in last


def test_json_is_one_document(bundle: Bundle, trt: TensorRt) -> None:
    done = llamavid("build", bundle.folder, "--target", TARGET.name, "--graph", "content", "--json")
    document = json.loads(done.stdout)
    (made,) = document["sets"]
    assert made["engines"][0]["stage"] == "content"
    assert made["engines"][0]["size"] > 10_000
    assert made["settings"]["flags"] == "strongly typed, no TF32"
    assert done.stderr == ""


def test_a_target_that_cannot_be_built_here_becomes_a_package(bundle: Bundle) -> None:
    done = llamavid("build", bundle.folder, "--target", "orin-jp6", "--graph", "content", "--frames", "1,2,4")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    package = bundle.folder.with_name("bundle-orin-jp6.build")
    assert line.startswith("error: orin-jp6 has a processor aarch64, this machine ")
    assert f"Copy {package} to the Jetson Orin" in line
    command = "llamavid build . --target orin-jp6 --graph content --frames 1,2,4"
    assert command in line
    assert command in (package / "BUILD.txt").read_text()
    assert json.loads((package / "build.json").read_text())["versions"] == ["10.3", "10.7"]


def test_a_package_that_was_asked_for_is_no_failure(bundle: Bundle, tmp_path: Path) -> None:
    wanted = ("--target", "rtx-sm86", "--graph", "content", "--package", "-o", tmp_path / "package")
    done = llamavid("build", bundle.folder, *wanted)
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "package").digest == bundle.digest
    assert not (bundle.folder / "engines").exists()


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="here is a GPU")
def test_a_package_s_folder_is_refused_where_engines_are_built(bundle: Bundle, trt: TensorRt) -> None:
    done = llamavid("build", bundle.folder, "--target", TARGET.name, "-o", bundle.folder.with_name("x"))
    assert done.returncode == 2
    assert f"{TARGET.name} is built here, in the bundle. Leave it out, or pass --package." in done.stderr
    assert not (bundle.folder / "engines").exists()


def test_a_workspace_that_is_too_small_is_said(bundle: Bundle, trt: TensorRt) -> None:
    with pytest.raises(DeviceError, match=r"so little memory beside its tensors\. Pass a larger --workspace"):
        built(bundle, trt, BuildOptions(stages=("vision",), workspace_bytes=1))


def test_this_machine_without_a_gpu_is_no_target(bundle: Bundle) -> None:
    done = llamavid("build", bundle.folder, "--target", "this")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("Name another --target, and build there.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "a1000"), "target 'a1000'; expected a100, h200"),
        (("--target", "rtx-sm86", "--graph", "eyes"), "graph 'eyes'; expected vision, content"),
        (("--target", "rtx-sm86", "--frames", "1,2"), "'1,2' is not three numbers"),
        (("--target", "a100", "--target", "thor", "-o", "x"), "-o with several targets"),
    ],
)
def test_what_is_typed_wrong_is_one_line(bundle: Bundle, arguments: tuple[str, ...], said: str) -> None:
    done = llamavid("build", bundle.folder, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# The timing cache. TensorRT-RTX has none (its functions do nothing), so what is merged here is lines.


def merged_lines(theirs: bytes, ours: bytes) -> bytes:
    return b"\n".join(sorted({*theirs.split(b"\n"), *ours.split(b"\n")}))


def test_processes_that_share_a_timing_cache_lose_nothing_of_each_other(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom llamavid.export.timing_cache import TimingCacheFile\n"
        "from tests.export.test_to_engine import merged_lines\n"
        f"cache = TimingCacheFile(Path({str(tmp_path / 'timing.cache')!r}), merged_lines)\n"
        "for i in range(40): cache.add(f'{sys.argv[1]}{i}'.encode())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    lines = TimingCacheFile(tmp_path / "timing.cache", merged_lines).read().decode().split("\n")
    assert sorted(lines) == sorted(f"{name}{i}" for name in "ab" for i in range(40))


def test_a_timing_cache_that_cannot_be_merged_stays_as_it_was(tmp_path: Path) -> None:
    def fails(theirs: bytes, ours: bytes) -> bytes:
        raise OSError("no")

    cache = TimingCacheFile(tmp_path / "timing.cache", fails)
    cache.add(b"first")
    with pytest.raises(OSError, match="no"):
        cache.add(b"second")
    assert cache.read() == b"first"
