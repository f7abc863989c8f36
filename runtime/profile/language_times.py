"""Prefill and decode of the language model, through the decoder that answers.

Times are the host's, around whole steps: what a user waits for, copies and the last synchronization included.
Which numbers are read does not matter, so they are random.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llamavid.config import LanguageConfig
from llamavid.runtime.machine import LanguageDecoder
from llamavid.runtime.profile.document import LanguageFigures
from llamavid.runtime.profile.figures import figure, rounds_within

_SEED, _SIZE = 0, 0.02  # embeddings of a trained model are about as large


def language_figures(
    decoder: LanguageDecoder,
    language: LanguageConfig,
    *,
    prompt_tokens: int,
    new_tokens: int,
    seconds: float,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> LanguageFigures:
    """A prompt of `prompt_tokens`, then `new_tokens` one by one.

    Raises:
        PromptError: both together do not fit the model's context.
        DeviceError: memory does not suffice, or the machine fails.
    """
    random = np.random.default_rng(_SEED)
    rows = random.normal(0, _SIZE, (1, prompt_tokens, language.hidden)).astype(np.float32)
    cache: Any = None
    like = decoder.sequence(np.zeros(1, np.int64), np.zeros((1, language.hidden), np.float32), None)
    sequence = rows.astype(like.dtype) if isinstance(like, np.ndarray) else rows  # an engine takes float32

    def answer() -> tuple[float, list[float]]:
        nonlocal cache
        cache = decoder.new_cache(prompt_tokens + new_tokens, reuse=cache)
        start = time.perf_counter()
        decoder.prefill(cache, sequence)
        read, steps = time.perf_counter(), list[float]()
        for _ in range(new_tokens):
            begin = time.perf_counter()
            decoder.decode_one(cache, rows[0, 0])
            steps.append((time.perf_counter() - begin) * 1000)
        return (read - start) * 1000, steps

    rounds = rounds_within(answer, seconds, at_most=20, on_round=on_round)
    steps = [step for _, each in rounds for step in each]
    return LanguageFigures(prompt_tokens, new_tokens, figure([read for read, _ in rounds]), figure(steps))
