"""llama.cpp beside our graphs: the same layers in Q4_0, timed through its own functions.

    write_gguf(file, language, read)                read(name) -> float32, as our graphs read it
    with LlamaCpp(file, context=1024) as model:
        logits = model.run(rows, past=0)            rows [T, D] embeddings -> [V] after the last

Needs `pip install 'llamavid[bench]'`. Knows LLaMA without grouped keys, as Vicuna-7B is.

Note [Pairs]
    llama.cpp turns neighbouring elements of a head, transformers an element of the first half and its like in
    the second. So the rows of q and k are stored in another order, which no product of the two notices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from llamavid.config import LanguageConfig

Array = npt.NDArray[np.float32]
Read = Callable[[str], Array]

_Q4_0 = gguf.GGMLQuantizationType.Q4_0  # blocks of 32, one float16 scale each
_CHUNK = 512  # tokens a call, as `llamavid.runtime.decoder` reads a prompt
_SEQUENCE = 0

_LAYER = {  # GGUF's name -> ours
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(file: Path, language: LanguageConfig, read: Read) -> Path:
    """A model of these layers, every matrix in Q4_0, without a tokenizer."""
    writer = gguf.GGUFWriter(file, "llama", use_temp_file=True)  # tensors wait on the disk, not in memory
    writer.add_context_length(language.context_length)
    writer.add_embedding_length(language.hidden)
    writer.add_block_count(language.layers)
    writer.add_feed_forward_length(language.mlp_width)
    writer.add_head_count(language.heads)
    writer.add_head_count_kv(language.kv_heads)
    writer.add_layer_norm_rms_eps(language.norm_eps)
    writer.add_rope_dimension_count(language.head_dim)
    writer.add_rope_freq_base(language.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(language.rope_factor)
    writer.add_vocab_size(language.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for name, ours in _names(language).items():
        _add(writer, name, _in_order(name, read(ours), language))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _names(language: LanguageConfig) -> dict[str, str]:
    """Ours by GGUF's. The embedding is never read here, where rows come embedded, but must be there."""
    names = {"token_embd": "lm_head", "output": "lm_head", "output_norm": "model.norm"}
    for index in range(language.layers):
        names |= {f"blk.{index}.{name}": f"model.layers.{index}.{ours}" for name, ours in _LAYER.items()}
    return {f"{name}.weight": f"{ours}.weight" for name, ours in names.items()}


def _in_order(name: str, weight: Array, language: LanguageConfig) -> Array:
    """Note [Pairs]."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    halves = weight.reshape(language.heads, 2, language.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _add(writer: gguf.GGUFWriter, name: str, weight: Array) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, gguf.quants.quantize(weight, _Q4_0), raw_dtype=_Q4_0)


class LlamaCpp:
    """One model and one sequence of at most `context` tokens. Must be closed: use it in a `with` block."""

    def __init__(self, file: Path, *, context: int, threads: int) -> None:
        _quiet()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, f"llama.cpp does not load {file}"
        self._width = llama_cpp.llama_model_n_embd(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, _CHUNK, _CHUNK
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        assert self._context, f"llama.cpp has no room for {context} tokens"
        self._batch = llama_cpp.llama_batch_init(_CHUNK, self._width, 1)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def run(self, rows: Array, *, past: int) -> Array:
        """Reads embeddings [T, D] behind the first `past` tokens, forgets the rest -> logits [V]."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), _SEQUENCE, past, -1)
        for start in range(0, len(rows), _CHUNK):
            chunk = np.ascontiguousarray(rows[start : start + _CHUNK], np.float32)
            self._read(chunk, past + start)
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab,)).copy()

    def _read(self, rows: Array, position: int) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        for index in range(len(rows)):
            batch.pos[index], batch.n_seq_id[index] = position + index, 1
            batch.seq_id[index][0] = _SEQUENCE
            batch.logits[index] = index == len(rows) - 1
        status = llama_cpp.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode gave {status}"


@llama_cpp.llama_log_callback
def _nowhere(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Its log goes nowhere: the table says what matters."""


def _quiet() -> None:
    llama_cpp.llama_log_set(_nowhere, ctypes.c_void_p(0))
