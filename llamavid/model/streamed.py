"""The reference on a machine that cannot hold it: one block or layer in memory at a time.

Gives what `LlamaVid` gives, in float32, reading each weight once from the
checkpoint. Export compares its graphs with this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamavid.model.checkpoint import Checkpoint
from llamavid.model.parts import llama_config
from llamavid.model.vision import Block, VisionEncoder

Change = Callable[[str, Tensor], Tensor]  # a weight's name and value -> what to compute with
Around = Callable[[str, nn.Module], AbstractContextManager[object]]  # open while that module runs

BATCH = 8  # frames in a block at once: EVA-g's hidden rows are 6 MB a frame, its scores 4


@torch.inference_mode()
def streamed_features(
    checkpoint: Checkpoint,
    pixels: Tensor,
    *,
    change: Change | None = None,
    around: Around = lambda part, module: nullcontext(),
) -> Tensor:
    """pixels [T, 3, S, S] -> features [T, 1+N, C].

    Args:
        change: applied to every matrix.
        around: opened with each part's name (`vision`, `vision.blocks.3`) and module while it runs.
    """
    config = checkpoint.config.vision
    with torch.device("meta"):
        front = VisionEncoder(config)
        front.blocks = nn.ModuleList()
        block = Block(config)
    x = pixels.float()
    for part, module in [("vision", front), *((f"vision.blocks.{i}", block) for i in range(config.depth))]:
        _filled(checkpoint, part, module, change)
        with around(part, module):
            x = torch.cat([module(frames) for frames in x.split(BATCH)])
    return x


@torch.inference_mode()
def streamed_logits(checkpoint: Checkpoint, sequence: Tensor, *, change: Change | None = None) -> Tensor:
    """Embeddings [1, T, D] -> logits [T, V], each token seeing those before it.

    Args:
        change: applied to every matrix, to compute with the weights a format leaves of it.
    """
    language = checkpoint.config.language
    settings = llama_config(language)
    settings.num_hidden_layers = 1
    with torch.device("meta"):
        model = LlamaModel(settings)
        head = nn.Linear(language.hidden, language.vocab_size, bias=False)
    layer, norm = model.layers[0], model.norm
    model.norm = nn.Identity()  # type: ignore[assignment]  # it comes once, after the last layer
    model.rotary_emb = LlamaRotaryEmbedding(settings)
    x = sequence.float()
    for index in range(language.layers):
        _filled(checkpoint, f"language.model.layers.{index}", layer, change)
        x = model(inputs_embeds=x, use_cache=False).last_hidden_state
    x = _filled(checkpoint, "language.model.norm", norm)(x)
    return _filled(checkpoint, "language.lm_head", head, change)(x)[0]


def embedding_chunks(checkpoint: Checkpoint, rows: int = 4096) -> Iterator[Tensor]:
    """The language model's input table [V, D], some rows at a time."""
    yield from checkpoint.read("language.model.embed_tokens.weight").split(rows)


def _filled(checkpoint: Checkpoint, part: str, module: nn.Module, change: Change | None = None) -> nn.Module:
    checkpoint.fill(part, module, dtype=torch.float32, device="cpu")
    for name, weight in module.named_parameters():
        if change and weight.ndim == 2:
            weight.data = change(f"{part}.{name}", weight.data)
    return module.eval()
