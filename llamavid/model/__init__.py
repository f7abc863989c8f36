"""The PyTorch reference model. `load_model` is the door.

Needs the `export` extra (torch, transformers); nothing in the runtime imports it. The networks of the frames,
`vision`, `qformer` and `compressor`, are imported with torch alone: the door opens when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamavid.model.llamavid import LlamaVid, load_model

__all__ = ["LlamaVid", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llamavid.model import llamavid

    return getattr(llamavid, name)
