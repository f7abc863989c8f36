"""The PyTorch reference model. `load_model` is the door.

Needs the `export` extra (torch, transformers); nothing in the runtime imports it.
"""

from llamavid.model.llamavid import LlamaVid, load_model

__all__ = ["LlamaVid", "load_model"]
