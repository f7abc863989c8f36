"""TensorRT-LLM's PyTorch backend: `LLM`, frame tokens as multimodal embeddings through our registered module.

On one GPU, in this process: another one would not know the module.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.errors import DeviceError
from llamavid.runtime.tensorrt_llm.installed import pytorch_version
from llamavid.sampling import Sampling
from llamavid.vicuna_folder import VicunaNote

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

_PAD_ID = 0
_IN_THIS_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"


class PyTorchBackend:
    """One sequence at a time."""

    def __init__(self, llm: Any, note: VicunaNote) -> None:
        self._llm, self._language = llm, note.language
        self.max_tokens = self.max_rows = note.language.context_length

    def tokens(
        self, ids: Ids, rows: Array, *, max_new_tokens: int, sampling: Sampling
    ) -> Generator[int, None, None]:
        import torch
        from tensorrt_llm import SamplingParams

        from llamavid.runtime.tensorrt_llm.vicuna_module import request

        taken = ids[ids >= self._language.vocab_size] - self._language.vocab_size
        result = self._llm.generate_async(
            request(ids.tolist(), torch.from_numpy(np.ascontiguousarray(rows[taken]))),
            sampling_params=SamplingParams(
                end_id=self._language.eos_id,
                pad_id=_PAD_ID,
                max_tokens=max_new_tokens,
                detokenize=False,
                **sampling_words(sampling),
            ),
            streaming=True,
        )
        heard = 0
        try:
            for output in result:
                produced = output.outputs[0].token_ids  # all so far
                yield from produced[heard:]
                heard = len(produced)
        finally:
            if not result.finished:
                result.abort()

    def close(self) -> None:
        self._llm.shutdown()


def open_pytorch(folder: Path, note: VicunaNote) -> PyTorchBackend:
    """Loads the Hugging Face folder.

    Raises:
        DeviceError: TensorRT-LLM is not installed or too old, or runs workers as other processes.
    """
    pytorch_version()
    if os.environ.setdefault(_IN_THIS_PROCESS, "1") != "1":  # read when the LLM is made
        raise DeviceError(f"{_IN_THIS_PROCESS} is {os.environ[_IN_THIS_PROCESS]!r}", expected="1, or not set")
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    # The folder has a copy of our module for trtllm-serve; we run our own, never code that came with weights.
    import llamavid.runtime.tensorrt_llm.vicuna_module  # noqa: F401

    length = note.language.context_length
    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype=note.dtype,
        max_batch_size=1,
        max_seq_len=length,  # it would multiply the RoPE table's rows by the factor: Note [Positions]
        max_num_tokens=length,
        kv_cache_config=KvCacheConfig(enable_block_reuse=False),  # Note [Row ids]
    )
    return PyTorchBackend(llm, note)


def sampling_words(sampling: Sampling) -> dict[str, Any]:
    """Our sampling in its words: greedy is the best one."""
    if sampling.temperature == 0:
        return {"top_k": 1}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
