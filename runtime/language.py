"""The language model with its words: a prompt and frame tokens in, text out.

Knows tokenizer, embeddings and decoder; knows nothing of videos. A sequence is read into a cache that the
caller keeps, and may roll back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamavid.bundle import EMBEDDINGS, LANGUAGE_TOKENIZER
from llamavid.config import LanguageConfig
from llamavid.errors import UsageError
from llamavid.prompt import Part
from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.machine import LanguageDecoder, Machine
from llamavid.sampling import Sampler, Sampling
from llamavid.tokenizer import LanguageTokenizer, TextStream

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Said:
    """An answer's words."""

    text: str
    token_ids: tuple[int, ...]  # without </s>
    finish_reason: str  # "stop" at </s>, "length" at max_new_tokens


class Vicuna(Protocol):
    """A language model that another runtime runs in this process: `llamavid.runtime.tensorrt_llm.vicuna`."""

    language: LanguageConfig

    def generate(
        self,
        ids: Ids,
        tokens: FrameTokens | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Said:
        """Reads a prompt's ids, `SLOT_ID` where `tokens` go, and answers."""
        ...


class LanguageModel:
    """One thread at a time. The graph is loaded by the first call that needs it."""

    def __init__(self, machine: Machine) -> None:
        bundle = machine.bundle
        self._machine, self._config = machine, bundle.manifest.model.language
        self._tokenizer = LanguageTokenizer(bundle.path(LANGUAGE_TOKENIZER))
        self._embeddings = np.load(bundle.path(EMBEDDINGS), mmap_mode="r", allow_pickle=False)

    def ids(self, parts: Sequence[Part]) -> Ids:
        """A prompt's token ids int64 [T], bos in front, `SLOT_ID` where frame tokens go."""
        return self._tokenizer.ids(parts)

    def sequence(self, ids: Ids, tokens: Any | None = None) -> Any:
        """Ids, or a part of them, as embeddings [1, L, D]; slots take `tokens`, by Note [Rows]."""
        return self.decoder().sequence(ids, self._embeddings, tokens)

    def decoder(self) -> LanguageDecoder:
        return self._machine.decoder()

    def generate(
        self,
        cache: Any,
        logits: Array,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[str], None] = lambda text: None,
        on_token: Callable[[], None] = lambda: None,
    ) -> Said:
        """What comes after `logits` [V], which the prefill of `cache` gave.

        Args:
            on_text: called with each piece of text as it comes.
            on_token: called as soon as a token is known, </s> included.
        """
        sampler, stream = Sampler(sampling), TextStream(self._tokenizer)
        token_ids, pieces = list[int](), list[str]()

        def tell(text: str) -> None:
            if text:
                pieces.append(text)
                on_text(text)

        while (token := sampler.pick(logits)) != self._config.eos_id:
            on_token()
            token_ids.append(token)
            tell(stream.push(token))
            if len(token_ids) == max_new_tokens:
                break
            logits = self.decoder().decode_one(cache, self._embeddings[token])
        else:
            on_token()
        tell(stream.finish())
        reason = "length" if len(token_ids) == max_new_tokens else "stop"
        return Said("".join(pieces).strip(), tuple(token_ids), reason)


def check_max_new_tokens(tokens: int) -> None:
    if tokens < 1:
        raise UsageError(f"max-new-tokens is {tokens}", expected="1 or more")
