"""An engine set answers only if every byte is what was built, for this device, of this bundle, and passed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.bundle import MANIFEST, Bundle, open_bundle
from llamavid.contract import Lowering
from llamavid.engines import (
    ENGINES,
    FOLDER,
    STAMP,
    Device,
    EngineSet,
    Profile,
    engine_sets,
    graph_digest,
    open_engines,
    remove_stamp,
    require_device,
    require_stamp,
    write_stamp,
)
from llamavid.errors import BundleError, DeviceError, LlamaVidError, ParityError
from llamavid.targets import Library
from tests.engine_sets import A100, engine_set, rows_of, write_engine_set


@pytest.fixture
def bundle(short_bundle: Path, tmp_path: Path) -> Bundle:
    """Its manifest alone matters here; the rest is linked."""
    return open_bundle(shutil.copytree(short_bundle, tmp_path / "bundle", copy_function=os.link))


@pytest.fixture
def stamped(bundle: Bundle) -> EngineSet:
    engines = engine_set(bundle)
    write_stamp(engines, A100, rows_of(engines))
    return engines


def answer(bundle: Bundle, device: Device = A100, target: str = "a100") -> None:
    """What is done before an engine is deserialized."""
    engines = open_engines(bundle, target)
    require_device(engines, device)
    require_stamp(engines, device)


def refusal(bundle: Bundle, device: Device = A100) -> LlamaVidError:
    """Why it does not answer: one short line with a command to run."""
    with pytest.raises(LlamaVidError) as caught:
        answer(bundle, device)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert len(line) < 2000
    assert "llamavid " in caught.value.next_step
    assert str(bundle.folder) in line
    return caught.value


def answers(bundle: Bundle) -> bool:
    try:
        answer(bundle)
    except LlamaVidError:
        return False
    return True


def edit(file: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value in a JSON document, the outermost last."""
    for key, value in (
        data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    ):
        yield from paths(value, (*at, key))
    if at:
        yield at


def put(data: Any, at: tuple[Any, ...], value: Any) -> None:
    for key in at[:-1]:
        data = data[key]
    data[at[-1]] = value


def take(data: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        data = data[key]
    return data


def another(value: Any) -> Any:
    """Of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2 + 1
    if isinstance(value, str):
        return value + "x"
    return type(value)()


OTHERS: list[Any] = [
    None,
    True,
    -1,
    10**30,
    0.5,
    math.nan,
    "",
    "x" * 100_000,
    "\x1b[2J",
    [],
    [1, [2]],
    {},
    {"a": 1},
]


# What answers.


def test_a_stamped_set_answers(stamped: EngineSet, bundle: Bundle) -> None:
    answer(bundle)
    assert engine_sets(bundle) == ("a100",)
    assert open_engines(bundle, "a100").path("vision").is_file()


def test_the_stamp_says_what_was_compared_and_where(stamped: EngineSet, bundle: Bundle) -> None:
    stamp = require_stamp(stamped, A100)
    assert (stamp.device, stamp.driver, stamp.library_version) == (A100.name, A100.driver, A100.version)
    assert [row.graph for row in stamp.rows] == ["vision", "content", "context", "llm.static"]


def test_engines_change_nothing_of_the_bundle_s_identity(stamped: EngineSet, bundle: Bundle) -> None:
    assert open_bundle(bundle.folder).digest == bundle.digest


def test_a_copied_bundle_answers_on_the_same_device(
    stamped: EngineSet, bundle: Bundle, tmp_path: Path
) -> None:
    answer(open_bundle(shutil.copytree(bundle.folder, tmp_path / "copy")))


# engines.json: whatever is changed in it stops the answer.


def test_every_changed_field_of_the_set_stops_the_answer(stamped: EngineSet, bundle: Bundle) -> None:
    file = stamped.folder / ENGINES
    whole = file.read_text()
    for at in paths(json.loads(whole)):
        data = json.loads(whole)
        put(data, at, another(take(data, at)))
        file.write_text(json.dumps(data))
        assert refusal(bundle), at


def test_every_missing_field_of_the_set_stops_the_answer(stamped: EngineSet, bundle: Bundle) -> None:
    file = stamped.folder / ENGINES
    whole = file.read_text()
    for at in paths(json.loads(whole)):
        data = json.loads(whole)
        del take(data, at[:-1])[at[-1]]
        file.write_text(json.dumps(data))
        assert refusal(bundle), at


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_value_of_another_type_is_one_line(
    short_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    bundle = _reused(short_bundle, tmp_path_factory)
    name = data.draw(st.sampled_from([ENGINES, STAMP]))
    file = bundle.folder / FOLDER / "a100" / name
    whole = file.read_text()
    try:
        document = json.loads(whole)
        put(document, data.draw(st.sampled_from(list(paths(document)))), data.draw(st.sampled_from(OTHERS)))
        file.write_text(json.dumps(document))
        if (name == ENGINES and json.dumps(document) != json.dumps(json.loads(whole))) or not answers(bundle):
            refusal(bundle)
    finally:
        file.write_text(whole)


_KEPT: dict[Path, Bundle] = {}


def _reused(short_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if short_bundle not in _KEPT:
        folder = tmp_path_factory.mktemp("engines") / "bundle"
        bundle = open_bundle(shutil.copytree(short_bundle, folder, copy_function=os.link))
        engines = engine_set(bundle)
        write_stamp(engines, A100, rows_of(engines))
        _KEPT[short_bundle] = bundle
    return _KEPT[short_bundle]


@pytest.mark.parametrize("name", [ENGINES, STAMP])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 9000 + b"}",
        b"{}",
    ],
)
def test_a_file_that_is_no_document_is_one_line(
    stamped: EngineSet, bundle: Bundle, name: str, text: bytes
) -> None:
    (stamped.folder / name).write_bytes(text)
    assert "is damaged" in str(refusal(bundle))


@pytest.mark.parametrize("name", [ENGINES, STAMP])
def test_a_giant_document_is_not_read(stamped: EngineSet, bundle: Bundle, name: str) -> None:
    with (stamped.folder / name).open("wb") as file:
        file.truncate(1 << 40)  # a terabyte, sparse
    assert "bytes; expected at most" in str(refusal(bundle))


@pytest.mark.parametrize("name", [ENGINES, STAMP])
@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0, None])
def test_another_format_version_is_refused(
    stamped: EngineSet, bundle: Bundle, name: str, version: Any
) -> None:
    edit(stamped.folder / name, lambda data: data.update(format_version=version))
    assert "is damaged" in str(refusal(bundle))


# The engines.


@pytest.mark.parametrize("stage", ["vision", "content", "context", "llm"])
def test_one_flipped_bit_of_an_engine_is_found(stamped: EngineSet, bundle: Bundle, stage: str) -> None:
    file = stamped.path(stage)
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)
    assert f"{file} has sha256" in str(refusal(bundle))


def test_a_cut_a_longer_and_a_missing_engine_are_found(stamped: EngineSet, bundle: Bundle) -> None:
    file = stamped.path("llm")
    whole = file.read_bytes()
    for data, words in ((whole[:-1], "has 999 bytes"), (whole + b"x", "has 1001 bytes")):
        file.write_bytes(data)
        assert words in str(refusal(bundle))
    file.unlink()
    assert "is missing" in str(refusal(bundle))


@pytest.mark.parametrize(
    "name", ["../stamp.json", "/etc/passwd", "a/../../vision.engine", "..\\x", "", ".", "a\nb", "x" * 5000]
)
def test_a_file_outside_the_set_is_not_opened(stamped: EngineSet, bundle: Bundle, name: str) -> None:
    edit(stamped.folder / ENGINES, lambda data: data["engines"]["vision"].update(file=name))
    refusal(bundle)


def test_a_link_out_of_the_set_is_not_followed(stamped: EngineSet, bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside.engine"
    stamped.path("vision").rename(outside)
    stamped.path("vision").symlink_to(outside)
    assert "expected a file inside" in str(refusal(bundle))


def test_a_stage_that_we_do_not_have_is_refused(stamped: EngineSet, bundle: Bundle) -> None:
    edit(stamped.folder / ENGINES, lambda data: data["engines"].update(other=data["engines"].pop("llm")))
    assert "has engines for 'other'" in str(refusal(bundle))


@pytest.mark.parametrize(
    ("smallest", "tuned", "largest"),
    [
        ({"x": (2,)}, {"x": (1,)}, {"x": (3,)}),
        ({"x": (0,)}, {"x": (1,)}, {"x": (3,)}),
        ({"x": (1,)}, {"y": (1,)}, {"x": (1,)}),
        ({"x": (1,)}, {"x": (1, 1)}, {"x": (1,)}),
        ({"x": (1,)}, {"x": (1,)}, {"x": (2**31,)}),
    ],
)
def test_a_profile_rises_and_is_of_the_same_inputs(smallest: Any, tuned: Any, largest: Any) -> None:
    with pytest.raises(ValueError, match="profile 'frames'"):
        Profile("frames", smallest, tuned, largest)


# Whose, and for what.


def test_the_engines_of_another_bundle_are_refused(stamped: EngineSet, bundle: Bundle) -> None:
    edit(bundle.folder / MANIFEST, lambda data: data["built_with"].update(checkpoint="another"))
    assert "was built from another bundle" in str(refusal(open_bundle(bundle.folder)))


def test_a_set_that_was_renamed_is_refused(stamped: EngineSet, bundle: Bundle) -> None:
    stamped.folder.rename(stamped.folder.with_name("h200"))
    with pytest.raises(BundleError, match="holds engines for a100; expected h200"):
        open_engines(bundle, "h200")


@pytest.mark.parametrize(
    "target", ["thor", "", ".", "..", "../engines/a100", "a100/", "/", "*", "a" * 5000, "\0"]
)
def test_a_target_without_a_set_is_told_which_there_are(
    stamped: EngineSet, bundle: Bundle, target: str
) -> None:
    with pytest.raises(BundleError, match="it has: a100"):
        open_engines(bundle, target)


def test_a_bundle_without_engines_says_so(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="it has: none") as caught:
        open_engines(bundle, "a100")
    assert caught.value.next_step == f"Run: llamavid build {bundle.folder} --target a100."


def test_a_set_in_the_making_is_none(bundle: Bundle) -> None:
    write_engine_set(bundle).rename(bundle.folder / FOLDER / ".a100.x1")
    (bundle.folder / FOLDER / "thor" / ENGINES).mkdir(parents=True)
    assert engine_sets(bundle) == ()


DEVICES = {
    "another compute capability": (replace(A100, capability=(8, 6)), "compute capability 8.0; expected 8.6"),
    "another library": (replace(A100, library=Library.TENSORRT_RTX), "TensorRT-RTX is installed"),
    "a newer version": (replace(A100, version="11.4.0.12"), "TensorRT 10.16.1.11; expected 11.4.0.12"),
    "an older version": (replace(A100, version="10.3.0.26"), "expected 10.3.0.26"),
    "another patch of it": (replace(A100, version="10.16.1.12"), "expected 10.16.1.12"),
}


@pytest.mark.parametrize("case", DEVICES)
def test_a_set_for_another_device_is_refused(stamped: EngineSet, case: str) -> None:
    device, words = DEVICES[case]
    with pytest.raises(DeviceError, match="--target this") as caught:
        require_device(stamped, device)
    assert words in str(caught.value)


def test_a_set_built_on_another_processor_is_refused(bundle: Bundle) -> None:
    engines = engine_set(
        bundle, built_with={"processor": "riscv64"}, hardware_compatible=True, version_compatible=True
    )
    with pytest.raises(DeviceError, match="processor riscv64"):
        require_device(engines, A100)


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("10.16.1.11", "10.16.1.11", True),
        ("10.3.0.26", "10.16.1.11", True),
        ("10.3.0.26", "11.4.0.12", True),
        ("11.0.0.1", "10.16.1.11", False),
        ("10.16.1.11", "10.3.0.26", False),
        ("10.3.0.26", "12.0.0.1", False),  # nobody has said so
        ("", "11.4.0.12", False),
        ("new", "11.4.0.12", False),
    ],
)
def test_a_version_compatible_set_runs_on_newer_versions_alone(
    bundle: Bundle, built: str, here: str, runs: bool
) -> None:
    engines = engine_set(bundle, version=built, version_compatible=True)
    assert _accepted(engines, replace(A100, version=here)) is runs


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ((8, 0), (8, 0), True),
        ((8, 0), (8, 9), True),
        ((8, 0), (12, 0), True),
        ((8, 6), (8, 0), False),
        ((7, 5), (8, 0), False),
    ],
)
def test_a_hardware_compatible_set_runs_from_ampere_up(
    bundle: Bundle, built: Any, here: Any, runs: bool
) -> None:
    engines = engine_set(bundle, capability=built, hardware_compatible=True)
    assert _accepted(engines, replace(A100, capability=here)) is runs


def test_what_tensorrt_rtx_does_not_have_is_not_believed(bundle: Bundle) -> None:
    engines = engine_set(bundle, "rtx-sm86", hardware_compatible=True, version_compatible=True)
    here = Device("RTX A4000", (8, 6), "580", Library.TENSORRT_RTX, "1.7.1.2", 1)
    assert _accepted(engines, here)
    assert not _accepted(engines, replace(here, capability=(8, 9)))
    assert not _accepted(engines, replace(here, version="1.8.0"))


def _accepted(engines: EngineSet, device: Device) -> bool:
    try:
        require_device(engines, device)
    except DeviceError:
        return False
    return True


# The stamp.


def test_a_set_that_was_never_verified_does_not_answer(bundle: Bundle) -> None:
    engine_set(bundle)
    assert refusal(bundle).next_step == f"Run: llamavid verify {bundle.folder} --target a100."


def test_a_removed_stamp_is_missed(stamped: EngineSet, bundle: Bundle) -> None:
    remove_stamp(stamped)
    remove_stamp(stamped)  # twice is no error
    assert "was never compared" in str(refusal(bundle))


@pytest.mark.parametrize("change", [{"name": "NVIDIA A100-PCIE-40GB"}, {"driver": "590.1"}])
def test_the_stamp_of_another_device_or_driver_does_not_count(
    stamped: EngineSet, bundle: Bundle, change: Any
) -> None:
    error = refusal(bundle, replace(A100, **change))
    assert isinstance(error, ParityError)
    assert "is of another" in str(error)


def test_the_stamp_of_another_version_does_not_count(bundle: Bundle) -> None:
    engines = engine_set(bundle, version_compatible=True)
    write_stamp(engines, A100, rows_of(engines))
    assert "another library's version" in str(refusal(bundle, replace(A100, version="11.4.0.12")))


def test_less_free_memory_is_the_same_device(stamped: EngineSet) -> None:
    require_stamp(stamped, replace(A100, memory_bytes=1))


def test_every_changed_or_missing_field_of_the_stamp_stops_the_answer(
    stamped: EngineSet, bundle: Bundle
) -> None:
    """But for the numbers and words of a passed row, which are there to be read."""
    file = stamped.folder / STAMP
    whole = file.read_text()
    for at in paths(json.loads(whole)):
        missing, changed = json.loads(whole), json.loads(whole)
        del take(missing, at[:-1])[at[-1]]
        file.write_text(json.dumps(missing))
        assert isinstance(refusal(bundle), (ParityError, BundleError)), at
        put(changed, at, another(take(changed, at)))
        file.write_text(json.dumps(changed))
        if at[-1] not in ("precision", "against", "largest_error", "tolerance", "reason"):
            assert isinstance(refusal(bundle), (ParityError, BundleError)), at


@pytest.mark.parametrize("error", [3e-2, math.nan, math.inf])
def test_a_row_that_failed_is_not_stamped_and_takes_the_old_stamp_away(
    stamped: EngineSet, bundle: Bundle, error: float
) -> None:
    rows = rows_of(stamped)
    rows[2] = replace(rows[2], norm_error=error, against="PyTorch float32, 8 frames")
    with pytest.raises(ParityError, match=r"context \(PyTorch float32, 8 frames\)"):
        write_stamp(stamped, A100, rows)
    assert "was never compared" in str(refusal(bundle))


def test_an_engine_that_was_left_out_is_not_stamped(stamped: EngineSet, bundle: Bundle) -> None:
    for rows, missing in ((rows_of(stamped)[:-1], r"llm\.static"), ([], "content, context")):
        with pytest.raises(ParityError, match=missing):
            write_stamp(stamped, A100, rows)
        assert "was never compared" in str(refusal(bundle))


def test_a_row_in_the_stamp_that_failed_is_seen(stamped: EngineSet, bundle: Bundle) -> None:
    for error in (0.5, math.nan):
        edit(stamped.folder / STAMP, lambda data, error=error: data["rows"][0].update(norm_error=error))  # type: ignore[misc]
        assert "no passed comparison of vision" in str(refusal(bundle))


def test_rebuilt_engines_need_a_new_stamp(stamped: EngineSet, bundle: Bundle) -> None:
    """Even where a rename brought the old stamp along."""
    edit(stamped.folder / ENGINES, lambda data: data["settings"].update(workspace="1 GiB"))
    assert "is of another engines" in str(refusal(bundle))


def test_a_stamp_is_written_whole(stamped: EngineSet) -> None:
    assert sorted(file.name for file in stamped.folder.iterdir() if file.suffix == ".json") == [
        ENGINES,
        STAMP,
    ]
    assert [file.name for file in stamped.folder.iterdir() if file.name.startswith(".")] == []


def test_a_graph_s_digest_is_of_its_file_and_its_weights(bundle: Bundle) -> None:
    manifest = bundle.manifest
    whole = graph_digest(bundle, "vision")
    for name in ("vision.onnx", "vision.onnx.data"):
        entry = replace(manifest.files[name], sha256="0" * 64)
        other = replace(bundle, manifest=replace(manifest, files={**manifest.files, name: entry}))
        assert graph_digest(other, "vision") != whole
    assert graph_digest(bundle, "content") != whole


def test_a_set_says_which_lowering_it_runs(bundle: Bundle) -> None:
    assert engine_set(bundle, lowering=Lowering.PRIMITIVE).manifest.lowering is Lowering.PRIMITIVE
