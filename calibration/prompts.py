"""What the language model reads while it is watched: a prompt for each question about each clip.

Takes the frame tokens that the frame networks have just made; the words come from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamavid.calibration.material import Material
from llamavid.errors import PromptError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.sequence import embedded
from llamavid.prompt import conversation
from llamavid.tokenizer import LanguageTokenizer


def prompt_ids(checkpoint: Checkpoint, material: Material, *, template: str) -> list[Tensor]:
    """int64 [T] of every question, in the order of `Material.asked`; a slot stands for all frames.

    Raises:
        PromptError: one is longer than the language model reads.
    """
    tokenizer, config = LanguageTokenizer(checkpoint.language_tokenizer), checkpoint.config
    found = []
    for frames, question in material.asked():
        ids = torch.from_numpy(tokenizer.ids(conversation(question, template=template)))
        count = frames.stop - frames.start
        length = len(ids) - 1 + count * config.tokens_per_frame
        if length > config.language.context_length:
            raise PromptError(
                f"a clip of {count} frames and its question make {length} tokens",
                expected=f"at most {config.language.context_length}",
                next_step="Take fewer frames of each clip, or leave the language model out.",
            )
        found.append(ids)
    return found


def embedded_prompts(checkpoint: Checkpoint, ids: Sequence[Tensor], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Prompts as embeddings, each [1, L, D].

    Args:
        tokens: of every prompt, frame tokens [T, 1+n, D].
    """
    table = checkpoint.read("language.model.embed_tokens.weight")
    return [
        embedded(one, [rows.flatten(0, 1)], lambda text: table[text])[None]
        for one, rows in zip(ids, tokens, strict=True)
    ]
