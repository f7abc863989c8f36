"""TensorRT-RTX for tests: it parses and builds without a GPU.

Where it is not installed (it has wheels for x86-64 alone) the tests that need it are skipped; with
LLAMAVID_TENSORRT=rtx, as CI sets it, they fail instead.
"""

from __future__ import annotations

import os

import pytest

from llamavid.errors import DeviceError
from llamavid.export.tensorrt_library import TensorRt, open_library
from llamavid.targets import Library


def tensorrt_rtx() -> TensorRt:
    """The library, or a skipped test."""
    try:
        return open_library(Library.TENSORRT_RTX)
    except DeviceError as error:
        if os.environ.get("LLAMAVID_TENSORRT") == "rtx":
            raise
        pytest.skip(str(error))
