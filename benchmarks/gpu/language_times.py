"""The language model: prompts read, tokens decoded, and the time to the first one, at two lengths of context.

Published: explicit attention, and a cache that is joined anew at every step. Ours: a cache in place, joined
products, attention by a kernel, a decode step as one CUDA graph. Logits of the prompt's last row and of the
tokens after it are compared with the truth in float32, at every length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.compiling import compiled_for, not_compiled
from benchmarks.gpu.errors import BOUNDS, relative
from benchmarks.gpu.fast_language import Attention, FastLanguage
from benchmarks.gpu.graphs import captured, has_graphs
from benchmarks.gpu.plain_language import Cache, PlainLanguage, float32_logits
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.timing import timed
from llamavid.runtime.profile.figures import Figure
from llamavid.work import decode_work

GROUP = "The language model"
FOLLOWING = 4  # tokens whose logits are compared
_ROUNDS = 8
_HELD_STEP = 256  # places: a decode graph is for as many as the next multiple


@dataclass(frozen=True)
class Context:
    """Rows to read, rows that follow, and the truth: logits float32 [1 + FOLLOWING, V] of the last."""

    embeddings: Tensor
    truth: Tensor

    @property
    def tokens(self) -> int:
        return len(self.embeddings) - FOLLOWING

    @property
    def held(self) -> int:
        """Places of the cache that a decode step reads."""
        return -(-len(self.embeddings) // _HELD_STEP) * _HELD_STEP


@torch.inference_mode()
def context_of(plain: PlainLanguage, tokens: int) -> Context:
    """Random rows."""
    weight = plain.lm_head.weight
    random = torch.Generator(weight.device).manual_seed(tokens)
    shape = (tokens + FOLLOWING, plain.config.hidden)
    rows = torch.randn(shape, device=weight.device, generator=random).to(weight.dtype)
    return Context(rows, float32_logits(plain, rows, FOLLOWING + 1))


@torch.inference_mode()
def measure_published(report: Report, plain: PlainLanguage, context: Context) -> None:
    """Prefill and decode, eager."""
    what = f"published, eager, {context.tokens:,} tokens"
    with report.attempt(what):
        prompt, rows = (
            context.embeddings[: context.tokens],
            list(context.embeddings[context.tokens :].split(1)),
        )
        cache: Cache = []
        found = torch.stack([plain(prompt, cache), *(plain(row, cache) for row in rows)])
        errors = _errors(found, context)
        read = timed(lambda: plain(prompt, []), prompt.device, rounds=_ROUNDS)

        def step() -> Tensor:
            """At the same length each time."""
            return plain(rows[0], [(k[:, : context.tokens], v[:, : context.tokens]) for k, v in cache])

        decoded = timed(step, prompt.device, rounds=_ROUNDS)
        for value in _values(report, what, plain, context, (read, decoded), errors):
            report.add(value)


@torch.inference_mode()
def measure_ours(
    report: Report, plain: PlainLanguage, contexts: list[Context], *, attention: Attention, compiled: bool
) -> FastLanguage:
    """Prefill, and decode as it is and as a CUDA graph where there are some. Gives the language model."""
    device = plain.lm_head.weight.device
    compile_ = compiled_for(device) if compiled else not_compiled
    tokens = max(context.held for context in contexts)
    fast = FastLanguage(plain, tokens=tokens, attention=attention, compile=compile_)
    how = f"ours{', compiled' if compiled else ''}, {attention.name.lower()}"
    for context in contexts:
        for graphed in (False, True) if has_graphs(device) else (False,):
            kind = "CUDA graph" if graphed else "eager" if not compiled else "no graph"
            what = f"{how}, {kind}, {context.tokens:,} tokens"
            if report.has_time(what, seconds=15):
                with report.attempt(what):
                    for value in _ours(report, what, fast, context, graphed=graphed):
                        report.add(value)
    if not has_graphs(device):
        report.skip(f"{how}, CUDA graph", "no CUDA graphs here")
    return fast


def _ours(
    report: Report, what: str, fast: FastLanguage, context: Context, *, graphed: bool
) -> Iterator[Value]:
    device = context.embeddings.device
    prompt, position = context.embeddings[: context.tokens], torch.tensor([context.tokens], device=device)
    row = context.embeddings[context.tokens, None].clone()

    def step() -> Tensor:
        return fast.decode(row, position, held=context.held)

    def read() -> Tensor:
        return fast.prefill(prompt)

    read_once, decode_once = (_replay(each) if graphed else each for each in (read, step))
    found = [read_once().clone()]
    for place in range(context.tokens, len(context.embeddings)):
        position.fill_(place)
        row.copy_(context.embeddings[place, None])
        found.append(decode_once().clone())
    errors = _errors(torch.stack(found), context)
    position.fill_(context.tokens)
    figures = tuple(timed(each, device, rounds=_ROUNDS) for each in (read_once, decode_once))
    yield from _values(report, what, fast.plain, context, figures, errors)


def _replay(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return captured(run).replay


def _errors(found: Tensor, context: Context) -> dict[str, float]:
    return {
        "prompt's logits": relative(found[:1], context.truth[:1]),
        "next tokens' logits": relative(found[1:], context.truth[1:]),
    }


def _values(
    report: Report,
    what: str,
    plain: PlainLanguage,
    context: Context,
    figures: tuple[Figure, ...],
    errors: dict[str, float],
) -> Iterator[Value]:
    """Of milliseconds: tokens a second, and the time to the first."""
    read, decoded = figures
    bound = BOUNDS[str(plain.lm_head.weight.dtype).removeprefix("torch.")]
    work = decode_work(plain.config, context.tokens)
    moved = 2 * (work.weights + work.carried)  # bytes of 16-bit numbers, each read once
    bandwidth = report.settings.get("bandwidth")  # None: the copy was not measured
    share = (
        f"; {moved / (decoded.median / 1000) / bandwidth:.0%} of the copy's bandwidth" if bandwidth else ""
    )
    for name, figure, per, note in (
        ("prefill", read, 1000 * context.tokens, f"first token after {read.median:.1f} ms"),
        ("decode", decoded, 1000, f"{decoded.median:.2f} ms{share}"),
    ):
        rates = (per / spent for spent in (figure.median, figure.high, figure.low))
        yield Value(
            GROUP, f"{what}, {name}", next(rates), "tokens/s", next(rates), next(rates), errors, bound, note
        )
