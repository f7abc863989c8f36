"""The reference on a machine that cannot hold it: one block or layer in memory at a time.

Gives what `LlamaVid` gives, in float32, reading each weight once from the checkpoint. Export compares its
graphs with this; export and calibration watch it run (`llamavid.model.watching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamavid.model.checkpoint import Checkpoint
from llamavid.model.compressor import Compressor
from llamavid.model.parts import llama_config, text_decoder
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.vision import Block, VisionEncoder

Around = Callable[[str, nn.Module], AbstractContextManager[object]]  # open while that module runs

BATCH = 8  # frames in a block at once: EVA-g's hidden rows are 6 MB a frame, its scores 4


@dataclass(frozen=True)
class Part:
    """What is in memory at one time."""

    name: str  # of the checkpoint, `vision.blocks.3`, `language.lm_head`
    module: nn.Module  # holds the weights
    run: Callable[[Tensor], Tensor]  # what the part computes


@torch.inference_mode()
def streamed_features(
    checkpoint: Checkpoint,
    pixels: Tensor,
    *,
    around: Around = lambda part, module: nullcontext(),
) -> Tensor:
    """pixels [T, 3, S, S] -> features [T, 1+N, C].

    Args:
        around: opened with each part's name (`vision`, `vision.blocks.3`) and module while it runs.
    """
    x = pixels.float()
    for part in vision_parts(checkpoint):
        with around(part.name, part.module):
            x = torch.cat([part.run(frames) for frames in x.split(BATCH)])
    return x


@torch.inference_mode()
def streamed_logits(
    checkpoint: Checkpoint,
    sequences: Sequence[Tensor],
    *,
    around: Around = lambda part, module: nullcontext(),
) -> list[Tensor]:
    """Embeddings of some prompts, each [1, T, D] -> logits of each [T, V], a token seeing those before it.

    Args:
        around: opened with each part's name (`language.model.layers.3`) and module while it runs.
    """
    rows = [sequence.float() for sequence in sequences]
    for part in language_parts(checkpoint):
        with around(part.name, part.module):
            rows = [part.run(sequence) for sequence in rows]
    return [logits[0] for logits in rows]


def vision_parts(checkpoint: Checkpoint, *, first: int = 0) -> Iterator[Part]:
    """`vision`, pixels to the first block's input, then `vision.blocks.0` and so on; from part `first` on.

    A part is valid until the next one is asked for: all blocks are one module, filled anew.
    """
    config = checkpoint.config.vision
    with torch.device("meta"):
        front = VisionEncoder(config)
        front.blocks = nn.ModuleList()
        block = Block(config)
    parts = [("vision", front), *((f"vision.blocks.{index}", block) for index in range(config.depth))]
    for name, module in parts[first:]:
        yield Part(name, _filled(checkpoint, name, module), module)


def language_parts(checkpoint: Checkpoint, *, first: int = 0) -> Iterator[Part]:
    """`language.model.layers.0` and so on, `language.model.norm`, `language.lm_head`; from part `first` on.

    Each takes and gives rows [B, T, ...]. Valid as those of `vision_parts`.
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

    def run_layer(x: Tensor) -> Tensor:
        rows: Tensor = model(inputs_embeds=x, use_cache=False).last_hidden_state
        return rows

    parts: list[tuple[str, nn.Module, Callable[[Tensor], Tensor]]]
    parts = [(f"language.model.layers.{index}", layer, run_layer) for index in range(language.layers)]
    parts += [("language.model.norm", norm, norm), ("language.lm_head", head, head)]
    for name, module, run in parts[first:]:
        yield Part(name, _filled(checkpoint, name, module), run)


def token_networks(checkpoint: Checkpoint) -> tuple[TextDecoderModel, Compressor]:
    """The two networks that make frame tokens of features: small enough to be in memory together."""
    with torch.device("meta"):
        decoder, compressor = text_decoder(checkpoint.config), Compressor(checkpoint.config)
    _filled(checkpoint, "text_decoder", decoder)
    _filled(checkpoint, "compressor", compressor)
    return decoder, compressor


def embedding_chunks(checkpoint: Checkpoint, rows: int = 4096) -> Iterator[Tensor]:
    """The language model's input table [V, D], some rows at a time."""
    yield from checkpoint.read("language.model.embed_tokens.weight").split(rows)


def _filled(checkpoint: Checkpoint, part: str, module: nn.Module) -> nn.Module:
    checkpoint.fill(part, module, dtype=torch.float32, device="cpu")
    return module.eval()
