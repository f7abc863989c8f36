"""What an error is measured in, and the error of one module.

Two outputs of the model are compared: the frame tokens, which three graphs make of a clip and a question, and
the logits, which the language model makes of a prompt. Each has a budget of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

Chosen = Mapping[str, Collection[str]]  # graph -> modules that are rounded


class Output(str, enum.Enum):
    """An output of the model in PyTorch, float32."""

    FRAME_TOKENS = "frame_tokens"  # context and content tokens together
    LOGITS = "logits"  # after every token of a prompt

    @property
    def graphs(self) -> tuple[str, ...]:
        """What makes it."""
        return ("llm",) if self is Output.LOGITS else ("vision", "content", "context")


@dataclass(frozen=True)
class ModuleError:
    """Of one module rounded alone, everything else exact.

    Args:
        error: norm of the output's difference over its norm; not finite where rounding breaks the model.
        multiplications: of this module, for one frame or one token.
        divergence: of the next token's distribution from the exact one (Kullback-Leibler, nats, mean over
            the prompt's tokens); of logits alone.
    """

    graph: str
    module: str
    error: float
    multiplications: int
    divergence: float | None = None
