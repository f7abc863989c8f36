"""scales.json with its vectors: they travel together, and what they do to a weight can be undone."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamavid.calibrated import VECTORS, Calibration, load_calibration, save_calibration
from llamavid.errors import ScalesError
from llamavid.scales import FORMAT_VERSION, Divided, GraphScales, Migration, Scales, Step

VECTOR = np.array([0.5, 1.0, 2.0, 8.0], np.float32)
VISION = GraphScales(
    "int8",
    {"blocks.0.attn.qkv": Step(12.7, 0.1)},
    migrations=(
        Migration(
            "norm1",
            (Divided("blocks.0.norm1.weight"), Divided("blocks.0.norm1.bias")),
            ("blocks.0.attn.qkv",),
        ),
        Migration("value", (Divided("blocks.0.attn.qkv.weight", 8),), ("blocks.0.attn.proj",)),
    ),
    importance={"blocks.0.attn.qkv": "energy"},
)
CALIBRATION = Calibration(
    Scales(FORMAT_VERSION, "mse", 64 * "a", 64 * "b", 3, "", {"vision": VISION}),
    {"norm1": VECTOR, "value": VECTOR[::-1].copy(), "energy": VECTOR},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_calibration(CALIBRATION, tmp_path / "scales.json")
    return tmp_path / "scales.json"


def test_what_is_saved_is_what_is_loaded_and_the_same_bytes_again(file: Path) -> None:
    loaded = load_calibration(file)
    assert loaded.scales.graphs == CALIBRATION.scales.graphs
    assert loaded.vectors.keys() == CALIBRATION.vectors.keys()
    first = [(file.parent / name).read_bytes() for name in ("scales.json", VECTORS)]
    save_calibration(loaded, file)
    assert first == [(file.parent / name).read_bytes() for name in ("scales.json", VECTORS)]
    assert sorted(found.name for found in file.parent.iterdir()) == ["scales.json", VECTORS]


def test_a_migration_changes_no_product() -> None:
    """LayerNorm's gain times its input, then the matrix: the vector leaves one and enters the other."""
    random, vision = np.random.default_rng(0), CALIBRATION.graph("vision")
    assert vision
    x, gain = random.normal(size=(5, 4)), random.normal(size=4).astype(np.float32)
    qkv, proj = random.normal(size=(12, 4)), random.normal(size=(3, 4))
    plain = (x * gain) @ qkv.T
    moved_gain = vision.migrated("blocks.0.norm1.weight", gain)
    moved_qkv = vision.migrated("blocks.0.attn.qkv.weight", qkv.astype(np.float32))
    found = (x * moved_gain) @ moved_qkv.T
    np.testing.assert_allclose(found[:, :8], plain[:, :8], rtol=1e-5)
    moved_proj = vision.migrated("blocks.0.attn.proj.weight", proj.astype(np.float32))
    np.testing.assert_allclose(found[:, 8:] @ moved_proj.T, plain[:, 8:] @ proj.T, rtol=1e-4)
    np.testing.assert_allclose(vision.restored("blocks.0.attn.qkv.weight", moved_qkv), qkv, rtol=1e-6)
    np.testing.assert_array_equal(vision.input_divisor("blocks.0.attn.qkv"), VECTOR)
    assert vision.input_divisor("blocks.0.mlp.fc1") is None


def test_what_no_migration_names_comes_back_as_it_is() -> None:
    vision, bias = CALIBRATION.graph("vision"), np.ones(4, np.float32)
    assert vision
    assert vision.migrated("blocks.1.norm1.weight", bias) is bias
    assert vision.migrated("blocks.0.attn.qkv", bias) is bias


def _vectors(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("norm1.npy", bytes(300 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (lambda: _vectors(norm1=VECTOR.astype(np.float64)), "norm1 is float64"),
        (lambda: _vectors(norm1=np.array([1, np.nan], np.float32)), "holds what is no number"),
        (lambda: _vectors(norm1=np.array([{}], object)), "damaged"),
        (lambda: _vectors(norm1=VECTOR, energy=VECTOR), "'value', which is no vector"),
        (lambda: _vectors(norm1=-VECTOR, value=VECTOR, energy=VECTOR), "norm1 is not above 0 throughout"),
        (lambda: b"PK\x03\x04nothing", "damaged"),
        (_bomb, "too large"),
    ],
)
def test_damaged_vectors_are_told_in_one_line(file: Path, packed: Callable[[], bytes], said: str) -> None:
    """Even where scales.json vouches for them: whoever wrote one may have written the other."""
    written = packed()
    (file.parent / VECTORS).write_bytes(written)
    document = json.loads(file.read_text())
    document["vectors"] = hashlib.sha256(written).hexdigest()
    file.write_text(json.dumps(document))
    with pytest.raises(ScalesError) as caught:
        load_calibration(file)
    assert said in str(caught.value)
    assert "llamavid calibrate" in str(caught.value)


def test_vectors_of_another_run_or_none_are_refused(file: Path) -> None:
    (file.parent / VECTORS).write_bytes(_vectors(norm1=VECTOR))
    with pytest.raises(ScalesError, match=r"is not the one that scales\.json names"):
        load_calibration(file)
    (file.parent / VECTORS).unlink()
    with pytest.raises(ScalesError, match=r"Copy scales\.npz with scales\.json"):
        load_calibration(file)


def test_a_vector_of_another_width_is_named() -> None:
    vision = CALIBRATION.graph("vision")
    assert vision
    with pytest.raises(ScalesError, match=r"blocks\.0\.attn\.qkv\.weight has 4 channels; expected 5"):
        vision.migrated("blocks.0.attn.qkv.weight", np.ones((12, 5), np.float32))
