"""Which engines answer, and that none is deserialized that may not. The GPU is `tests.standin`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamavid.bundle import open_bundle
from llamavid.engines import ENGINES, STAMP
from llamavid.errors import BundleError, DeviceError, LlamaVidError, ParityError, UsageError
from llamavid.runtime.machine import OnCpu
from llamavid.runtime.session import VideoSession
from tests.standin.cuda import Gpu
from tests.standin.engines import stamp, write_engines
from tests.standin.install import Machine, install

Make = Callable[..., Path]


def flip_a_byte(engines: Path) -> None:
    file = engines / "llm.engine"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change(engines: Path, /, **fields: Any) -> None:
    said = json.loads((engines / ENGINES).read_text())
    (engines / ENGINES).write_text(json.dumps({**said, **fields}))


def change_stamp(engines: Path, **fields: Any) -> None:
    said = json.loads((engines / STAMP).read_text())
    (engines / STAMP).write_text(json.dumps({**said, **fields}))


SPOILED: dict[str, tuple[Callable[[Path], None], type[LlamaVidError], str]] = {
    "a byte is flipped": (flip_a_byte, BundleError, "llm.engine has sha256"),
    "an engine is missing": (lambda e: (e / "llm.engine").unlink(), BundleError, "is missing"),
    "another version": (lambda e: change(e, version="10.3.0"), DeviceError, "built by TensorRT 10.3.0"),
    "another GPU": (lambda e: change(e, capability=[8, 7]), DeviceError, "capability 8.7; expected 8.0"),
    "another library": (lambda e: change(e, library="tensorrt_rtx"), DeviceError, "TensorRT-RTX"),
    "another bundle": (lambda e: change(e, bundle="0" * 64), BundleError, "another bundle"),
    "changed settings": (lambda e: change(e, settings={"a": "b"}), ParityError, "of another engines"),
    "no stamp": (lambda e: (e / STAMP).unlink(), ParityError, "never compared"),
    "another device's stamp": (lambda e: change_stamp(e, device="A10"), ParityError, "of another device"),
    "another driver's stamp": (lambda e: change_stamp(e, driver="5"), ParityError, "of another driver"),
    "an empty stamp": (lambda e: change_stamp(e, rows=[]), ParityError, "no passed comparison"),
}


@pytest.mark.parametrize("on", [None, "this", "a100"])
@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_engines_are_refused_before_they_are_deserialized(
    late: Machine, stamped: Make, what: str, on: str | None
) -> None:
    spoil, kind, words = SPOILED[what]
    folder = stamped(late)
    spoil(folder / "engines" / "a100")
    with pytest.raises(kind, match=re.escape(words)) as refused:
        VideoSession.open(folder, on=on)
    assert late.counts.deserialized == 0
    assert "--on cpu" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert late.leaks() == {}


def test_a_bundle_with_usable_engines_uses_them_unasked(late: Machine, stamped: Make) -> None:
    with VideoSession.open(stamped(late)) as session:
        assert session._machine.name == "Software A100, TensorRT 11.4.0.12"


@pytest.mark.parametrize("on", [None, "cpu"])
def test_a_bundle_without_engines_runs_on_the_cpu(late: Machine, bundle: Path, on: str | None) -> None:
    with VideoSession.open(bundle, on=on) as session:
        assert isinstance(session._machine, OnCpu)


def test_engines_that_were_asked_for_and_are_not_there_are_an_error(late: Machine, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no engines.*llamavid build .* --target this"):
        VideoSession.open(bundle, on="this")
    with pytest.raises(BundleError, match=r"has no engines for h200; it has: none"):
        VideoSession.open(bundle, on="h200")
    with pytest.raises(UsageError, match=r"target 'gpu'; expected a100"):
        VideoSession.open(bundle, on="gpu")


def test_the_cpu_steps_in_where_it_may_and_says_why(late: Machine, stamped: Make) -> None:
    folder = stamped(late)
    (folder / "engines" / "a100" / STAMP).unlink()
    with pytest.warns(UserWarning, match=r"The CPU answers, not an engine: .*never compared") as said:
        session = VideoSession.open(folder, allow_cpu=True)
    assert len(said) == 1
    assert isinstance(session._machine, OnCpu)


def test_allowing_the_cpu_says_nothing_where_the_engines_are_used(late: Machine, stamped: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoSession.open(stamped(late), allow_cpu=True).close()


def leave_out(engines: Path, stage: str) -> None:
    """As `llamavid build --graph` does of what it is not asked for."""
    said = json.loads((engines / ENGINES).read_text())["engines"]
    change(engines, engines={name: entry for name, entry in said.items() if name != stage})


@pytest.mark.parametrize("on", ["this", "a100"])
@pytest.mark.parametrize("stage", ["vision", "llm"])
def test_a_set_that_lacks_a_stage_is_refused_before_a_video_is_watched(
    late: Machine, bundle: Path, stage: str, on: str
) -> None:
    leave_out(write_engines(bundle), stage)
    stamp(bundle, late.device)
    with pytest.raises(BundleError, match=rf"has no engine for {stage}; it has: .* Run: llamavid build"):
        VideoSession.open(bundle, on=on)
    assert late.counts.deserialized == 0


def test_of_several_sets_this_machine_takes_its_own(late: Machine, bundle: Path) -> None:
    for target, capability in (("a100", (8, 0)), ("h200", (9, 0)), ("rtx-sm86", (8, 6))):
        write_engines(bundle, target=target, capability=capability)
    stamp(bundle, late.device)
    with VideoSession.open(bundle) as session:
        assert session._machine._engines.manifest.target == "a100"  # type: ignore[attr-defined]
    (bundle / "engines" / "a100" / STAMP).unlink()
    with pytest.raises(ParityError, match=r"a100: .*never compared.*; h200: .*capability 9.0"):
        VideoSession.open(bundle)


def test_a_command_to_run_next_can_be_typed_where_the_bundle_s_name_has_a_space(
    late: Machine, bundle: Path
) -> None:
    folder = bundle.rename(bundle.with_name("my bundle"))
    with pytest.raises(BundleError, match=f"Run: llamavid build '{folder}' --target this"):
        VideoSession.open(folder, on="this")
    write_engines(folder)
    with pytest.raises(ParityError, match=f"Run: llamavid verify '{folder}' --target a100"):
        VideoSession.open(folder)


NO_GPU: dict[str, tuple[dict[str, int], str]] = {
    "no driver": ({"driver": 0}, "has no NVIDIA driver"),
    "an old driver": ({"driver": 12020}, "knows CUDA up to 12.2; expected 13.0"),
    "no GPU": ({"devices": 0}, "sees no GPU"),
}


@pytest.mark.parametrize("what", NO_GPU)
def test_a_machine_that_lacks_something_says_what(
    late: Machine, stamped: Make, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stamped(late)
    given, words = NO_GPU[what]
    machine = install(monkeypatch, Gpu(**given))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=words) as refused:
        VideoSession.open(folder)
    assert machine.counts.deserialized == 0
    assert str(refused.value).count("--on cpu") == str(refused.value).count("--allow-cpu") == 1


@pytest.mark.parametrize(
    ("missing", "words"),
    [("tensorrt", "TensorRT is not installed"), ("cuda.bindings.runtime", "cuda-python is not installed")],
)
def test_a_missing_package_is_named(
    late: Machine, stamped: Make, missing: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stamped(late)
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    monkeypatch.setitem(__import__("sys").modules, "cuda.cudart", None)
    with pytest.raises(DeviceError, match=words):
        VideoSession.open(folder)


def test_an_engine_that_is_not_what_is_said_of_it_is_refused(late: Machine, bundle: Path) -> None:
    """Its hash is right and its stamp too: whoever made them made a mistake."""
    place = write_engines(bundle)
    said = json.loads((place / ENGINES).read_text())
    said["engines"]["vision"]["contract"]["outputs"][0]["dtype"] = "float32"
    (place / ENGINES).write_text(json.dumps(said))
    stamp(bundle, late.device)
    with (
        VideoSession.open(bundle) as session,
        pytest.raises(BundleError, match=r"features in HALF, not float32"),
    ):
        session._encoder.batch  # noqa: B018


def test_what_tensorrt_does_not_take_is_told_in_its_words(late: Machine, bundle: Path) -> None:
    place = write_engines(bundle)
    (place / "vision.engine").write_bytes(b"ftrt")
    said = json.loads((place / ENGINES).read_text())
    digest = __import__("hashlib").sha256(b"ftrt").hexdigest()
    said["engines"]["vision"]["content"] = {"size": 4, "sha256": digest}
    (place / ENGINES).write_text(json.dumps(said))
    stamp(bundle, late.device)
    with (
        VideoSession.open(bundle) as session,
        pytest.raises(DeviceError, match=r"does not take .*vision.engine \(Error Code 1: Serialization"),
    ):
        session._encoder.batch  # noqa: B018


@pytest.mark.parametrize("change", [flip_a_byte, lambda engines: (engines / "llm.engine").unlink()])
def test_what_changes_after_a_session_was_opened_is_not_deserialized(
    late: Machine, stamped: Make, change: Callable[[Path], None]
) -> None:
    """A long video lies between; somebody may build again meanwhile."""
    folder = stamped(late)
    with VideoSession.open(folder) as session:
        change(folder / "engines" / "a100")
        with pytest.raises(BundleError, match=r"llm.engine (has changed|cannot be read)"):
            session._language.decoder()
        assert late.counts.deserialized == 0


def test_hashes_are_checked_before_the_device(
    late: Machine, stamped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stamped(late)
    flip_a_byte(folder / "engines" / "a100")
    install(monkeypatch, Gpu(devices=0))
    with pytest.raises(BundleError, match="sha256"):
        VideoSession.open(folder, on="a100")
    assert open_bundle(folder)  # the bundle itself is sound
