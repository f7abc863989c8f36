"""After every test of a source: no thread, process or open file of it is left."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from tests.runtime.video.test_decoding import children, open_files


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    def now() -> tuple[object, ...]:
        return children(), open_files(), {thread.name for thread in threading.enumerate()}

    before = now()
    yield
    deadline = time.monotonic() + 2
    while now() != before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert now() == before
