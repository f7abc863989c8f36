"""What must hold, read off recorded results: each line with its figure, or why there is none.

Ratios are medians of the ratios of one run's rounds, as the benchmarks tell them. Knows which benchmark
measures what, and by which names its lines go; a result or a line that is not there is told by name, and
holds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.musts import musts as gpu_musts
from benchmarks.recorded import Result
from benchmarks.report import Line

EQUAL_ERROR = 1.1  # times ours: what a peer may be off and still count as equal
_Q4_0_BLOCKS = "int4 by 32"
TIMES_EAGER, TIMES_OPENVINO, TIMES_PUBLISHED, TIMES_SOONER, TIMES_LLAMA_CPP = 3.0, 1.0, 4.0, 5.0, 1.0


@dataclass(frozen=True)
class Must:
    """`found` is None where it was not measured; `note` says what was compared, or why it was not."""

    what: str
    bound: str
    found: float | None
    holds: bool
    note: str
    benchmark: str  # whose result it is read off

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        return "held" if self.holds else "**missed**"


class AbsentError(Exception):
    """No such line was measured; says which."""


Measure = Callable[[Result], tuple[float, str]]  # the figure and a note; raises AbsentError


@dataclass(frozen=True)
class Rule:
    """One line of what must hold: `measure` of that benchmark's result is at least so many times."""

    what: str
    at_least: float
    benchmark: str
    measure: Measure


def musts(results: Mapping[str, Result]) -> tuple[Must, ...]:
    """All of them, on the CPU and on each GPU that was measured."""
    return (*(_judged(rule, results.get(rule.benchmark)) for rule in RULES), *_on_gpus(results))


def _judged(rule: Rule, result: Result | None) -> Must:
    bound = f"{rule.at_least:g} x or more"
    if result is None:
        return Must(
            rule.what, bound, None, False, f"results/{rule.benchmark}.json is not there", rule.benchmark
        )
    try:
        found, note = rule.measure(result)
    except AbsentError as error:
        return Must(rule.what, bound, None, False, str(error), rule.benchmark)
    return Must(rule.what, bound, found, found >= rule.at_least, note, rule.benchmark)


def _on_gpus(results: Mapping[str, Result]) -> Iterator[Must]:
    """By the GPU benchmark's own reading of its documents."""
    documents = [each for each in results.values() if each.document.get("name") == "gpu"]
    if not documents:
        yield Must("on a GPU", "", None, False, "no results/gpu_*.json", "gpu")
    for each in documents:
        name = each.document["machine"].get("GPU", each.name)
        for must in gpu_musts(each.document):
            yield Must(f"{name}: {must.what}", must.bound, must.found, must.holds, "", each.name)


# Figures.


def _than_llama_cpp(result: Result, *, what: str) -> tuple[float, str]:
    """Ours in blocks as large as Q4_0's, by the median of ratios that its line tells.

    Coarser blocks are told beside it; an int8 cache is another thing than llama.cpp's float16, and is not.
    """
    found = {
        line.what.removeprefix(f"{what}, "): float(told[1])
        for line in _timed(result, rf"{what}, int4 by \d+(?:, float16 cache)?")
        if (told := re.search(r"([\d.]+) times llama\.cpp", line.note))
    }
    if _Q4_0_BLOCKS not in found:
        raise AbsentError(_absent(result))
    others = "; ".join(f"{side}: {times:g}" for side, times in found.items() if side != _Q4_0_BLOCKS)
    return found[_Q4_0_BLOCKS], f"{_Q4_0_BLOCKS}, blocks as Q4_0's" + (f"; {others}" if others else "")


def _of_equal_error(result: Result, *, batch: int) -> tuple[float, str]:
    """Ours in int8 against OpenVINO's fastest that is no further off."""
    ours = _best(result, rf"int8, batch {batch}\b.*")
    near = [
        line
        for line in _timed(result, rf"OpenVINO.*batch {batch}\b.*")
        if _error(line) <= _error(ours) * EQUAL_ERROR
    ]
    if not near:
        raise AbsentError(_absent(result))
    return _in_turn(result, min(near, key=_value), batch)


def _than_published(result: Result, *, batch: int) -> tuple[float, str]:
    """Ours in int8 against the faster of the published computation's forms."""
    return _in_turn(result, _best(result, rf"published computation.*batch {batch}\b.*"), batch)


def _in_turn(result: Result, theirs: Line, batch: int) -> tuple[float, str]:
    """The median of the ratios, round by round, which the encoder's benchmark tells of each other side."""
    side = theirs.what.partition(f", batch {batch}")[0]
    what = f"int8, batch {batch}, times as fast as {side}"
    line = next(result.matching(re.escape(what)), None)
    if line is None:
        raise AbsentError(_absent(result))
    return _value(line), f"median of ratios to {side}"


def _largest(result: Result, *, pattern: str) -> tuple[float, str]:
    """Of lines that are ratios themselves."""
    found = list(result.matching(pattern))
    if not found:
        raise AbsentError(_absent(result))
    best = max(found, key=_value)
    return _value(best), best.what


def _best(result: Result, pattern: str) -> Line:
    found = _timed(result, pattern)
    if not found:
        raise AbsentError(_absent(result))
    return min(found, key=_value)


def _timed(result: Result, pattern: str) -> list[Line]:
    """Lines of milliseconds: a benchmark may tell ratios under like names."""
    return [line for line in result.matching(pattern) if line.unit.startswith("ms")]


def _absent(result: Result) -> str:
    skipped = "; ".join(f"{line.what}: {line.note}" for line in result.skipped)
    return f"results/{result.name}.json has no such line" + (f"; skipped: {skipped}" if skipped else "")


def _value(line: Line) -> float:
    assert line.value is not None
    return line.value


def _error(line: Line) -> float:
    """That its note tells; infinite where it tells none."""
    told = re.search(r"relative error (?:of its logits )?([\d.]+e[+-]\d+)", line.note)
    return float(told[1]) if told else float("inf")


def _language(what: str) -> Rule:
    return Rule(
        f"language model, {what}: times llama.cpp Q4_0",
        TIMES_LLAMA_CPP,
        "int4_decode",
        partial(_than_llama_cpp, what=what),
    )


def _encoder(batch: int) -> Iterable[Rule]:
    yield Rule(
        f"encoder, batch {batch}: times the published computation in PyTorch eager float32",
        TIMES_EAGER,
        "int8_encoder",
        partial(_than_published, batch=batch),
    )
    yield Rule(
        f"encoder, batch {batch}: times OpenVINO's best of equal error",
        TIMES_OPENVINO,
        "int8_encoder",
        partial(_of_equal_error, batch=batch),
    )


RULES = (
    *_encoder(1),
    *_encoder(8),
    Rule(
        "text-related part (decoder and context), batch 32: times the published computation",
        TIMES_PUBLISHED,
        "rewrites",
        partial(_largest, pattern=r"32 frames: (?:int8|float32), every rewrite that pays.*"),
    ),
    Rule(
        "second question on 600 watched frames: times sooner than asking anew",
        TIMES_SOONER,
        "second_question",
        partial(_largest, pattern=r"whole depth, composed: times sooner"),
    ),
    _language("prefill of 256"),
    _language("prefill of 7,200"),
    _language("a token at 256"),
    _language("a token at 7,200"),
)
