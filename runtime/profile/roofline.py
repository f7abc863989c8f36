"""How near each module comes to what the machine can do, and what that would be on another. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llamavid.ceilings import PUBLISHED, Ceilings, bytes_moved, floor
from llamavid.config import ModelConfig
from llamavid.contract import GraphContract
from llamavid.runtime.profile.document import FrameFigures, LanguageFigures, Projection, Reached, Roofline
from llamavid.runtime.profile.stages import Origin
from llamavid.work import GRAPH_OF, MODULES, Work, decode_work, frame_work, prefill_work

PREFILL, DECODE = "prefill", "decode"  # modules of the language model; DECODE is one token


def roofline(
    config: ModelConfig,
    question_tokens: int,
    frames: Sequence[FrameFigures],
    language: LanguageFigures,
    origin: Origin,
    ceilings: Ceilings,
) -> Roofline:
    """Of what runs, under this machine's `ceilings`; projected from the largest batch."""
    works = frame_work(config, question_tokens)
    reached = [
        _reached(
            module,
            works[module],
            each.modules[module].median,
            GRAPH_OF[module],
            origin,
            ceilings,
            each.batch,
        )
        for each in frames
        for module in MODULES
    ]
    middle = language.prompt_tokens + language.new_tokens // 2
    writing = decode_work(config.language, middle)
    reading = prefill_work(config.language, language.prompt_tokens)
    reached += [
        _reached(PREFILL, reading, language.prefill.median, "llm", origin, ceilings, 1),
        _reached(DECODE, writing, language.decode.median, "llm", origin, ceilings, 1),
    ]
    largest = max(each.batch for each in frames)
    of_a_frame = [each for each in reached if each.batch == largest and each.module in MODULES]
    of_a_token = [each for each in reached if each.module == DECODE]
    projected = tuple(
        Projection(
            other.name,
            other.origin,
            largest,
            *_projected(of_a_frame, works, other),
            *_projected(of_a_token, {DECODE: writing}, other),
        )
        for other in PUBLISHED
    )
    return Roofline(ceilings.products, ceilings.bandwidth, ceilings.origin, tuple(reached), projected)


def _reached(
    module: str,
    work: Work,
    measured: float,
    stage: str,
    origin: Origin,
    ceilings: Ceilings,
    batch: int,
) -> Reached:
    precision = origin.precisions[stage]
    sizes = _sizes(origin.contracts[stage])
    least = floor(work, precision, ceilings, frames=batch, **sizes)
    return Reached(
        module,
        batch,
        precision,
        float(work.operations),
        bytes_moved(work, precision, frames=batch, **sizes),
        measured,
        least.milliseconds if least else None,
        least.bound if least else "",
    )


def _sizes(contract: GraphContract) -> dict[str, int]:
    """Bytes of a number at the boundary, and among the keys and values if there are any."""
    caches = [spec.dtype.numpy.itemsize for spec in contract.inputs if spec.name.startswith("past.")]
    kept = {"kept_bytes": caches[0]} if caches else {}
    return {"element_bytes": contract.inputs[0].dtype.numpy.itemsize, **kept}


def _projected(
    reached: Iterable[Reached], works: Mapping[str, Work], other: Ceilings
) -> tuple[float | None, float | None]:
    """Milliseconds of all modules together: at least, and at the share that each reaches here."""
    at_least = at_this_share = 0.0
    is_known = True
    for each in reached:
        least = floor(works[each.module], each.precision, other, frames=each.batch)
        if least is None:
            return None, None
        at_least += least.milliseconds
        is_known = is_known and each.share is not None
        at_this_share += least.milliseconds / (each.share or 1.0)
    return at_least, at_this_share if is_known else None
