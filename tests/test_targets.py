"""Targets are data: one for each device, and what it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamavid.contract import Lowering
from llamavid.errors import DeviceError, UsageError
from llamavid.targets import (
    TARGETS,
    THIS,
    Library,
    dotted,
    find_target,
    lowering_for,
    precisions_of,
    require_precision,
    target_of,
    version_of,
)

RELEASES = [(10, 3, 0, 26), (10, 7), (10, 13, 3), (10, 16, 2), (11, 0, 0, 114), (11, 4, 1), (12, 0)]


def test_the_targets_of_the_issue_are_there() -> None:
    names = {"a100", "h200", "orin-jp6", "orin-jp7", "thor"}
    assert names <= set(TARGETS)
    assert {name for name in TARGETS if name.startswith("rtx-")}
    assert all(name == target.name for name, target in TARGETS.items())


def test_a_device_is_one_target_at_most() -> None:
    """Whatever is installed on it: else which one `this` is would depend on the order of a table."""
    for a in TARGETS.values():
        for b in TARGETS.values():
            if a.name != b.name and (a.capability, a.library, a.machine) == (
                b.capability,
                b.library,
                b.machine,
            ):
                assert not [release for release in RELEASES if a.takes(release) and b.takes(release)]


@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_every_target_is_found_on_its_device(target: object) -> None:
    target = TARGETS[getattr(target, "name", "")]
    assert target_of(target.capability, target.library, target.first, target.machine) is target
    assert find_target(target.name) is target


def test_jetpack_decides_which_orin_it_is() -> None:
    def orin(version: tuple[int, ...]) -> str:
        return target_of((8, 7), Library.TENSORRT, version, "aarch64").name

    assert orin((10, 3, 0, 30)) == "orin-jp6"
    assert orin((10, 16, 2)) == "orin-jp7"
    with pytest.raises(DeviceError, match=r"TensorRT 10\.9, compute capability 8\.7"):
        orin((10, 9))


@pytest.mark.parametrize(
    ("capability", "library", "version", "machine"),
    [
        ((6, 1), Library.TENSORRT, (10, 16), "x86_64"),
        ((8, 0), Library.TENSORRT, (8, 6), "x86_64"),
        ((8, 0), Library.TENSORRT, (12, 0), "x86_64"),
        ((8, 0), Library.TENSORRT, (10, 16), "aarch64"),
        ((8, 7), Library.TENSORRT_RTX, (1, 7), "aarch64"),
        ((8, 0), Library.TENSORRT, (), "x86_64"),
    ],
)
def test_what_is_no_target_is_told_which_there_are(
    capability: tuple[int, int], library: Library, version: tuple[int, ...], machine: str
) -> None:
    with pytest.raises(DeviceError, match="expected one of a100") as caught:
        target_of(capability, library, version, machine)
    assert "--target" in caught.value.next_step


def test_a_range_of_versions_goes_as_far_as_its_numbers() -> None:
    orin = find_target("orin-jp6")
    assert [orin.takes(version) for version in ((10, 2), (10, 3), (10, 7, 9, 9), (10, 8))] == [
        False,
        True,
        True,
        False,
    ]
    assert find_target("a100").takes((11, 4, 1))


def test_precisions_are_those_of_the_compute_capability() -> None:
    assert precisions_of((8, 0)) == ("fp32", "fp16", "int8", "bf16", "int4")
    assert "fp8" in find_target("h200").precisions
    assert "fp8" not in find_target("orin-jp7").precisions
    assert not {"bf16", "int4"} & set(find_target("rtx-sm75").precisions)
    require_precision(find_target("thor"), "vision", "fp8")
    with pytest.raises(
        DeviceError, match="vision is in fp8, which a100 does not have; expected fp32, fp16, int8"
    ):
        require_precision(find_target("a100"), "vision", "fp8")


@pytest.mark.parametrize(
    ("library", "version", "lowering"),
    [
        (Library.TENSORRT, (10, 3), Lowering.PRIMITIVE),
        (Library.TENSORRT, (10, 14, 1), Lowering.PRIMITIVE),
        (Library.TENSORRT, (10, 15), Lowering.STATIC),
        (Library.TENSORRT, (11, 4, 1), Lowering.STATIC),
        (Library.TENSORRT_RTX, (1, 7, 1), Lowering.STATIC),
    ],
)
def test_the_language_model_is_lowered_by_what_the_library_knows(
    library: Library, version: tuple[int, ...], lowering: Lowering
) -> None:
    assert lowering_for(library, version) is lowering


@pytest.mark.parametrize("name", ["", "A100", "a100 ", "../a100", THIS])
def test_a_name_that_is_none_of_ours_is_typed_wrong(name: str) -> None:
    with pytest.raises(UsageError, match="expected a100, h200, orin-jp6"):
        find_target(name)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("11.4.0.12", (11, 4, 0, 12)),
        ("10.3.0rc1", (10, 3, 0)),
        ("1.7.1+cu13", (1, 7, 1)),
        ("10", (10,)),
        ("", ()),
        ("v10", ()),
        (".3", ()),
        ("1234567", ()),  # no version, and not 123456
        ("١٠.٣", ()),  # digits, but no library's
    ],
)
def test_versions_are_read_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


@given(st.lists(st.integers(0, 999_999), min_size=1, max_size=5).map(tuple))
def test_a_version_is_written_and_read_alike(version: tuple[int, ...]) -> None:
    assert version_of(dotted(version)) == version


@given(st.text())
def test_any_text_is_a_version_or_none(text: str) -> None:
    assert all(part >= 0 for part in version_of(text))
