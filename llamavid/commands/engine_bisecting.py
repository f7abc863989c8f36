"""--bisect of an engine set: its stages with their blocks as outputs, built anew here and run on this device.

Export builds, the runtime runs; neither knows the other, so this hands the one to the other. Where nothing
can be built here, it says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamavid.commands.bisecting import Examined
from llamavid.errors import DeviceError, LlamaVidError

if TYPE_CHECKING:
    from llamavid.bundle import Bundle
    from llamavid.console import Progress
    from llamavid.contract import GraphContract
    from llamavid.engines import EngineSet
    from llamavid.runtime.tensorrt.marked import Compile


class NotBuiltError(DeviceError):
    """The builder is not there, or refuses the marked graph."""


@contextmanager
def examined_engine(
    bundle: Bundle, engines: EngineSet, stage: str, compile_marked: Compile
) -> Iterator[Examined]:
    """The stage's engine as a bisection runs it.

    Its `run` raises:
        NotBuiltError: what `compile_marked` complained of.
        DeviceError: what was built does not run here.
    """
    from llamavid.runtime.tensorrt.marked import MarkedEngines

    def or_say_so(engines: EngineSet, stage: str, file: Path) -> tuple[Any, GraphContract]:
        try:
            return compile_marked(engines, stage, file)
        except LlamaVidError as error:
            raise NotBuiltError(error.given) from error

    entry = engines.manifest.engines[stage]
    name, axis = {"vision": ("pixels", 0), "llm": ("inputs_embeds", 1)}.get(stage, ("features", 0))
    largest = max(profile.largest[name][axis] for profile in entry.profiles)
    past = entry.profiles[0].smallest.get("past.0.key")
    own = bundle.path(bundle.manifest.graphs[entry.graph].file)
    with MarkedEngines(engines, stage, own, or_say_so) as run:
        yield Examined(run, largest, _cache(entry.profiles[0].largest, past))


def builder(progress: Progress) -> Callable[[EngineSet, str, Path], tuple[Any, GraphContract]]:
    """What `llamavid build` builds with, and its steps shown."""

    def compile_here(engines: EngineSet, stage: str, file: Path) -> tuple[Any, GraphContract]:
        from llamavid.export.marked_engine import compile_marked
        from llamavid.runtime.tensorrt.library import TensorRt

        library = engines.manifest.library
        if not hasattr(TensorRt(library).api, "Builder"):
            raise DeviceError(f"the {library.product} that is installed runs engines and builds none")

        def show(phase: str, done: int, steps: int) -> None:
            progress.update(f"build {stage} with its blocks as outputs", done, steps or None)

        return compile_marked(engines, stage, file, on_step=show)

    return compile_here


def _cache(largest: dict[str, tuple[int, ...]], smallest: tuple[int, ...] | None) -> int:
    """Tokens, of what the profile takes; few are enough to see a block go wrong."""
    few = 256
    return 0 if smallest is None else max(smallest[2], min(few, largest["past.0.key"][2]))
