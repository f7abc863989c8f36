"""Which TensorRT-LLM is here, and whether it has the backend that a folder needs."""

from __future__ import annotations

import re
from importlib import metadata

from llamavid.errors import DeviceError

# Until 1.2 engines; its PyTorch backend takes embeddings through a registered module from 1.2.1 on.
_ENGINE_FROM, _ENGINE_BEFORE, _PYTORCH_FROM = (1, 2, 0), (1, 3, 0), (1, 2, 1)
_CONTAINER = "Run in the container of docker/a100"


def engine_version() -> str:
    """The installed version, which runs engines. Raises `DeviceError` where it does not."""
    version = _installed()
    if not _ENGINE_FROM <= _numbers(version) < _ENGINE_BEFORE:
        raise DeviceError(
            f"TensorRT-LLM {version} is installed",
            expected="1.2, the last that runs engines",
            next_step=f"{_CONTAINER}, or export with --format pytorch.",
        )
    return version


def pytorch_version() -> str:
    """The installed version, which has the PyTorch backend. Raises `DeviceError` where it has not."""
    version = _installed()
    if _numbers(version) < _PYTORCH_FROM:
        raise DeviceError(
            f"TensorRT-LLM {version} is installed", expected="1.2.1 or later", next_step=f"{_CONTAINER}."
        )
    return version


def _installed() -> str:
    try:
        return metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError as error:
        raise DeviceError(
            "TensorRT-LLM is not installed",
            expected="1.2.1",
            next_step=f"{_CONTAINER}; on a Jetson use an engine of our own: llamavid build.",
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(number or 0) for number in found.groups()) if found else (0, 0, 0)
