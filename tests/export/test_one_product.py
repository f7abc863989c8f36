"""One product, written as the graphs write theirs and timed beside float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamavid.export.one_product import INPUT, write_product
from llamavid.export.precision import FP32, INT8, Precision, int4_precision
from llamavid.runtime.executors import open_session
from llamavid.runtime.one_product import median_seconds

SHAPE = (40, 96, 64)


@pytest.mark.parametrize(("precision", "error"), [(INT8, 0.02), (int4_precision(32), 0.15)])
def test_a_product_in_few_bits_is_nearly_the_one_in_float32(
    tmp_path: Path, precision: Precision, error: float
) -> None:
    x = np.random.default_rng(1).standard_normal(SHAPE[:2], np.float32)
    files = [write_product(tmp_path, SHAPE, each) for each in (FP32, precision)]
    exact, rounded = (open_session(file).run(None, {INPUT: x})[0] for file in files)
    assert exact.shape == (40, 64)
    assert 0 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < error


def test_graphs_are_timed_side_by_side(tmp_path: Path) -> None:
    files = [write_product(tmp_path, (rows, 256, 256), FP32) for rows in (1, 2000)]
    small, large = median_seconds(files, budget_seconds=0.1)
    assert 0 < 5 * small < large
