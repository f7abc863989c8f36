"""TensorRT-LLM's engine backend: `ModelRunnerCpp`, frame tokens as rows of the prompt table.

An engine of several GPUs runs under `mpirun -n GPUS`, the same program on each: only the first hears tokens.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.errors import CheckpointError, DeviceError
from llamavid.runtime.tensorrt_llm.installed import engine_version
from llamavid.sampling import Sampling
from llamavid.vicuna_folder import VicunaNote

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

_PAD_ID = 0


class EngineBackend:
    """One sequence at a time."""

    def __init__(self, runner: Any, note: VicunaNote) -> None:
        self._runner, self._end_id = runner, note.language.eos_id
        self.max_tokens: int = runner.max_sequence_length
        self.max_rows: int = runner.max_prompt_embedding_table_size

    def tokens(
        self, ids: Ids, rows: Array, *, max_new_tokens: int, sampling: Sampling
    ) -> Generator[int, None, None]:
        import torch

        table = (
            torch.from_numpy(np.ascontiguousarray(rows))[None].to(self._runner.dtype) if len(rows) else None
        )
        steps = self._runner.generate(
            batch_input_ids=[torch.from_numpy(ids.astype(np.int32))],
            max_new_tokens=max_new_tokens,
            end_id=self._end_id,
            pad_id=_PAD_ID,
            prompt_table=table,
            prompt_tasks=None if table is None else "0",
            streaming=True,
            return_dict=True,
            output_sequence_lengths=True,
            **sampling_words(sampling),
        )
        heard = len(ids)  # each step gives the whole sequence, prompt and all
        try:
            for step in steps:
                length = int(step["sequence_lengths"][0][0])
                yield from step["output_ids"][0][0][heard:length].tolist()
                heard = length
        finally:
            # Responses that nobody fetched would answer the next question.
            for _ in steps:
                pass

    def close(self) -> None:
        self._runner = None  # frees the executor


def open_engine(folder: Path, note: VicunaNote) -> EngineBackend:
    """Loads `rank*.engine`.

    Raises:
        CheckpointError: `folder` holds a checkpoint, or an engine of another version or model.
        DeviceError: TensorRT-LLM is another version, or there are too few processes.
    """
    version = engine_version()
    _check(folder, note, version)
    import tensorrt_llm
    from tensorrt_llm.runtime import ModelRunnerCpp

    if tensorrt_llm.mpi_world_size() != note.tensor_parallel:
        raise DeviceError(
            f"this program runs {tensorrt_llm.mpi_world_size()} times",
            expected=f"{note.tensor_parallel} times, once for each GPU of the engine",
            next_step=f"Start it with: mpirun -n {note.tensor_parallel} llamavid ...",
        )
    # No reuse of cached blocks: Note [Row ids].
    runner = ModelRunnerCpp.from_dir(
        engine_dir=str(folder), rank=tensorrt_llm.mpi_rank(), kv_cache_enable_block_reuse=False
    )
    return EngineBackend(runner, note)


def sampling_words(sampling: Sampling) -> dict[str, Any]:
    """Our sampling in its words: greedy is the best one."""
    if sampling.temperature == 0:
        return {"top_k": 1}
    return {
        "temperature": sampling.temperature,
        "top_k": 0,
        "top_p": sampling.top_p,
        "random_seed": sampling.seed,
    }


def _check(folder: Path, note: VicunaNote, version: str) -> None:
    """An engine is deserialized without asking: what it is has to be known before."""
    config = folder / "config.json"
    try:
        built = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read ({error})", expected="an engine's") from error
    if not isinstance(built, dict) or "pretrained_config" not in built:
        raise CheckpointError(
            f"{folder} is a checkpoint, not an engine",
            next_step="Run the trtllm-build line that `llamavid export-llm` printed, then open its output.",
        )
    if built.get("version") != version:
        raise CheckpointError(
            f"the engine in {folder} is of TensorRT-LLM {built.get('version')}",
            expected=f"{version}, which is installed",
            next_step="Run trtllm-build again here.",
        )
    model = built["pretrained_config"]
    for name, expected in (("vocab_size", note.language.vocab_size), ("hidden_size", note.language.hidden)):
        if not isinstance(model, dict) or model.get(name) != expected:
            raise CheckpointError(
                f"the engine in {folder} is not of the model in its vicuna.json",
                expected=f"{name} {expected}",
                next_step="Copy vicuna.json from the checkpoint that the engine was built of.",
            )
