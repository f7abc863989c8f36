"""What an exported Vicuna folder is: `vicuna.json`, which tells the runner what it may not guess.

    format         what kind of folder: a TensorRT-LLM checkpoint, or a Hugging Face folder
    language       the model's dimensions, context length and end token
    dtype, tensor_parallel, quantize, checkpoint

Export writes it beside the weights; an engine folder gets a copy of it. Knows nothing about weights.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from pathlib import Path

from llamavid.config import LanguageConfig, dataclass_from_json
from llamavid.errors import CheckpointError

FORMAT_VERSION = 1
NOTE = "vicuna.json"
TOKENIZER = "tokenizer.model"
ARCHITECTURE = "LlamaVidVicunaForCausalLM"  # by which TensorRT-LLM's PyTorch backend finds our module
MODULE = "llamavid_vicuna"  # the folder of that module, inside the exported one

_LIMIT = 1 << 20  # bytes; ours are under 1 kB


class VicunaFormat(str, enum.Enum):
    """Who reads the folder."""

    ENGINE = "engine"  # trtllm-build, then TensorRT-LLM's engine backend (up to 1.2)
    PYTORCH = "pytorch"  # TensorRT-LLM's PyTorch backend (1.2.1 and later), with our module
    HUGGINGFACE = "huggingface"  # any engine that reads a plain LLaMA


@dataclass(frozen=True)
class VicunaNote:
    """The contents of `vicuna.json`."""

    format_version: int
    format: VicunaFormat
    language: LanguageConfig
    dtype: str
    tensor_parallel: int
    quantize: str
    checkpoint: str  # the name of the folder it was made from


def write_note(folder: Path, note: VicunaNote) -> None:
    (folder / NOTE).write_text(json.dumps(dataclasses.asdict(note), indent=1) + "\n", encoding="utf-8")


def read_note(folder: Path) -> VicunaNote:
    """Raises `CheckpointError` where there is none, or none of ours."""
    file = folder / NOTE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds no {NOTE}",
            expected="a folder of `llamavid export-llm`, or an engine folder with that file copied into it",
        )
    try:
        with file.open("rb") as opened:
            data = json.loads(opened.read(_LIMIT))
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is {data.get('format_version')!r}, not {FORMAT_VERSION}")
        return dataclass_from_json(VicunaNote, data)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error})", next_step="Make the folder again with `llamavid export-llm`."
        ) from error
