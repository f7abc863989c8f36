"""The Vicuna as TensorRT-LLM's PyTorch backend loads it: a Llama whose prompt may hold frame tokens.

Registers the architecture that `llamavid export-llm --format pytorch` writes, and an input processor that
takes token ids with the embeddings of those that are no word's. One file without llamavid: it is copied into
the exported folder, where `trtllm-serve --custom_module_dirs` finds it.
"""

from __future__ import annotations

from typing import Any

import torch
from tensorrt_llm._torch.models.modeling_llama import LlamaForCausalLM
from tensorrt_llm._torch.models.modeling_multimodal_utils import find_input_mm_embeds, fuse_input_embeds
from tensorrt_llm._torch.models.modeling_utils import register_auto_model
from tensorrt_llm.inputs.registry import (
    BaseMultimodalInputProcessor,
    MultimodalPlaceholderMetadata,
    register_input_processor,
)
from torch import Tensor, nn

_MODALITY, _IDS, _ROWS = "image", "llamavid_token_ids", "multimodal_embedding"


def request(token_ids: list[int], rows: Tensor) -> dict[str, Any]:
    """A prompt for `LLM.generate`.

    Ids do not travel as `prompt_token_ids`: with embeddings 1.2 turns those into text and back again, which
    is not the same ids. The prompt's text only says which way to go; nobody reads it.

    Args:
        token_ids: those at or above the vocabulary's size stand for rows, in order.
        rows: float [R, D], one for each such id.
    """
    return {
        "prompt": "<frames>",
        "multi_modal_embeddings": {_MODALITY: [rows]},
        "mm_processor_kwargs": {_IDS: token_ids},
    }


class FrameTokenInputs(BaseMultimodalInputProcessor):
    """Ids and rows pass through as they are."""

    @property
    def processor(self) -> None:
        return None

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def config(self) -> Any:
        return self._config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._config.torch_dtype
        return dtype

    def __call__(self, inputs: Any, sampling_params: Any) -> tuple[list[int], dict[str, Any] | None]:
        """A prompt of words alone."""
        ids = self._tokenizer.encode(inputs["prompt"], add_special_tokens=sampling_params.add_special_tokens)
        return ids, None

    call_with_text_prompt = __call__  # its name after 1.2

    def attach_multimodal_embeddings(
        self, inputs: Any, multimodal_embedding: dict[str, list[Tensor]], sampling_params: Any
    ) -> tuple[list[int], dict[str, Any] | None]:
        """What `request` made."""
        ids, rows = inputs["mm_processor_kwargs"][_IDS], torch.cat(multimodal_embedding[_MODALITY])
        wanted = sum(token >= self._config.vocab_size for token in ids)
        if wanted != len(rows):
            raise ValueError(f"{wanted} places for frame tokens, {len(rows)} rows")
        return ids, {"multimodal_data": {_ROWS: rows}} if wanted else None


@register_input_processor(
    FrameTokenInputs,
    model_type="llamavid_vicuna",
    placeholder_metadata=MultimodalPlaceholderMetadata(placeholder_map={_MODALITY: "<image>"}),
)
@register_auto_model("LlamaVidVicunaForCausalLM")
class LlamaVidVicuna(nn.Module):
    """Wraps a Llama rather than being one: of a Llama's prompt the backend refuses ids beyond the words."""

    def __init__(self, model_config: Any) -> None:
        super().__init__()
        self.llm = LlamaForCausalLM(model_config)
        self.model_config, self.config = model_config, self.llm.config

    @property
    def vocab_size_padded(self) -> int:
        return int(self.llm.vocab_size_padded)

    def load_weights(self, weights: Any) -> None:
        self.llm.load_weights(weights)

    def infer_max_seq_len(self) -> int:
        return int(self.llm.infer_max_seq_len())

    @torch.inference_mode()
    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_context_logits: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Logits. Requests that are read for the first time come first; they alone may have rows."""
        reading = kwargs.get("multimodal_params", [])[: attn_metadata.num_contexts]
        reading = [request for request in reading if request.multimodal_data]
        rows = find_input_mm_embeds([one.multimodal_data[_ROWS] for one in reading], reading)
        input_ids, inputs_embeds = fuse_input_embeds(self.llm.model.embed_tokens, input_ids, rows, **kwargs)
        logits: Tensor = self.llm.forward(
            attn_metadata, input_ids, position_ids, inputs_embeds, return_context_logits
        )
        return logits
