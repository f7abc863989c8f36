"""Golden inputs are there for every stage, and are read only if they are what they say."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.bundle import Bundle, open_bundle
from llamavid.contract import DType
from llamavid.elements import as_elements, as_float32
from llamavid.errors import BundleError
from llamavid.golden import GOLDEN, MAX_BYTES, NAMES, read_golden, write_golden
from llamavid.parity import relative_errors, worst_row_errors

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def bundle(short_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(short_bundle, tmp_path / "bundle"))


def refusal(bundle: Bundle) -> str:
    with pytest.raises(BundleError, match="llamavid export") as caught:
        read_golden(bundle)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def arrays_of(bundle: Bundle) -> Arrays:
    with np.load(bundle.folder / GOLDEN, allow_pickle=False) as file:
        return dict(file)


def test_every_stage_has_its_inputs_and_its_outputs(bundle: Bundle) -> None:
    golden, model = read_golden(bundle), bundle.manifest.model
    assert golden.features.shape == (len(golden.pixels), 1 + model.vision.patches, model.vision.width)
    assert golden.chunks.tolist()[-2:] == [1, 1]
    assert len(golden.pixels) == 3
    assert not np.array_equal(golden.features[0], golden.features[1])


def test_outputs_of_quantized_weights_are_pytorch_s_with_the_same(int4_bundle: Path, bundle: Bundle) -> None:
    exact, rounded = read_golden(bundle), read_golden(open_bundle(int4_bundle))
    assert np.array_equal(exact.encoded, exact.features)
    assert np.array_equal(exact.features, rounded.features)
    assert not np.array_equal(exact.logits, rounded.logits)


def test_a_bundle_made_before_says_to_export_again(bundle: Bundle) -> None:
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != GOLDEN}
    assert "has no golden inputs" in refusal(replace(bundle, manifest=replace(bundle.manifest, files=files)))


CHANGES: dict[str, Callable[[Arrays], object]] = {
    "another shape": lambda arrays: arrays.update(features=arrays["features"][:, 1:]),
    "fewer frames of one": lambda arrays: arrays.update(relevance=arrays["relevance"][:2]),
    "another type": lambda arrays: arrays.update(logits=arrays["logits"].astype(np.int64)),
    "float64": lambda arrays: arrays.update(logits=arrays["logits"].astype(np.float64)),
    "no number": lambda arrays: arrays["attention"].__setitem__((0, 0), np.nan),
    "nothing": lambda arrays: arrays.update(relevance=arrays["relevance"][:0], pixels=arrays["pixels"][:0]),
    "a scalar": lambda arrays: arrays.update(sequence=np.float32(1)),
    "words that the model lacks": lambda arrays: arrays["question_ids"].__setitem__((0, 0), 10**9),
    "a word before the first": lambda arrays: arrays["question_ids"].__setitem__((0, 0), -1),
    "chunks that are no parts": lambda arrays: arrays["chunks"].__setitem__(0, 5),
    "chunks that overflow": lambda arrays: arrays["chunks"].__setitem__(0, 2**62),
    "columns first": lambda arrays: arrays.update(logits=np.asfortranarray(arrays["logits"])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_array_that_is_not_the_model_s_is_refused(bundle: Bundle, change: str) -> None:
    arrays = arrays_of(bundle)
    CHANGES[change](arrays)
    write_golden(bundle.folder / GOLDEN, arrays)
    assert "holds no golden inputs" in refusal(bundle)


def test_pickles_are_not_loaded(bundle: Bundle) -> None:
    arrays = arrays_of(bundle) | {"logits": np.array([{"a": 1}], object)}
    np.savez(bundle.folder / GOLDEN, **arrays)  # type: ignore[arg-type]
    assert "holds no golden inputs" in refusal(bundle)


def test_a_compressed_file_is_refused_before_it_grows(bundle: Bundle) -> None:
    np.savez_compressed(bundle.folder / GOLDEN, **arrays_of(bundle))  # type: ignore[arg-type]
    assert "is compressed" in refusal(bundle)


def rewrite(bundle: Bundle, change: Callable[[str, bytes], bytes], *more: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(bundle.folder / GOLDEN) as old:
        members = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(bundle.folder / GOLDEN, "w") as new:
        for name, data in (*members, *more):
            new.writestr(name, data)


def test_a_header_that_claims_a_terabyte_is_not_believed(bundle: Bundle) -> None:
    def claim(name: str, data: bytes) -> bytes:
        if name != "logits.npy":
            return data
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 18)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue() + bytes(64)

    rewrite(bundle, claim)
    assert "(1048576, 262144) in" in refusal(bundle)


def test_more_than_the_limit_is_not_read(bundle: Bundle) -> None:
    rewrite(bundle, lambda name, data: data + bytes(MAX_BYTES) if name == "logits.npy" else data)
    assert f"more than {MAX_BYTES} bytes" in refusal(bundle)


@pytest.mark.parametrize("name", ["../x.npy", "other.npy", "logits.npy", "x" * 60000])
def test_another_member_is_refused(bundle: Bundle, name: str) -> None:
    rewrite(bundle, lambda _, data: data, (name, b""))
    assert len(refusal(bundle)) < 2000


def test_a_missing_array_is_refused(bundle: Bundle) -> None:
    arrays = arrays_of(bundle)
    del arrays["chunks"]
    np.savez(bundle.folder / GOLDEN, **arrays)  # type: ignore[arg-type]
    refusal(bundle)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_one_line(
    short_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Where it escapes the hash: read, or refused."""
    bundle = open_bundle(short_bundle)
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray((short_bundle / GOLDEN).read_bytes())
    tail = data.draw(st.booleans())  # the directory, and the first headers: where it hurts
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, 2000)) if not tail else -data.draw(st.integers(1, 1000))
        whole[at] = data.draw(st.integers(0, 255))
    (folder / GOLDEN).write_bytes(whole[: len(whole) - data.draw(st.sampled_from([0, 0, 1, 500]))])
    with contextlib.suppress(BundleError):  # and nothing else
        read_golden(replace(bundle, folder=folder))


def test_the_file_is_the_same_whenever_it_is_written(bundle: Bundle, tmp_path: Path) -> None:
    write_golden(tmp_path / "again.npz", {name: arrays_of(bundle)[name] for name in NAMES})
    assert (tmp_path / "again.npz").read_bytes() == (bundle.folder / GOLDEN).read_bytes()


# The numbers that are compared.


def test_one_wrong_row_among_many_is_not_diluted() -> None:
    reference = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    found = reference.copy()
    found[40] *= 1.1
    assert worst_row_errors(reference, found)[1] == pytest.approx(0.1, rel=0.2)
    assert relative_errors(reference, found)[1] < 0.02


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_small_error(wrong: float) -> None:
    reference, found = np.ones((4, 5)), np.ones((4, 5))
    found[2, 3] = wrong
    for errors in (relative_errors(reference, found), worst_row_errors(reference, found)):
        assert not any(error <= 1e9 for error in errors)


def test_bfloat16_is_its_bits_at_a_boundary() -> None:
    dtype = DType.BFLOAT16
    values = np.array([1, -2.5, 3.14159, 1e38, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    assert as_elements(values, dtype).tolist() == [0x3F80, 0xC020, 0x4049, 0x7E96, 0x3F80, 0x3F82]
    assert np.allclose(as_float32(as_elements(values, dtype), dtype), values, rtol=2**-8)
