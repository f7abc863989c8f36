"""Weights that others published, by our names: a LLaMA folder, `eva_vit_g.pth`, InstructBLIP, BERT, adapters.

Takes a file or folder, gives where each weight lies, what is dropped on purpose and what nobody knows. Each
kind of file has a table of renames to the names of a release; `llamavid.model.names` knows the rest (facts
section 8). Reads names and shapes, no values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamavid.model.checkpoint import Stored
from llamavid.model.names import is_surplus, our_name, release_name
from llamavid.model.tensor_files import TensorFile, TensorFolder

# Stored prefix, release prefix; None = known and dropped on purpose. The longest that fits wins.
Renames = tuple[tuple[str, str | None], ...]

_LLAMA: Renames = (("model.", "model."), ("lm_head.", "lm_head."))
_EVA: Renames = (("", "model.vision_tower.vision_tower."),)
_INSTRUCT_BLIP: Renames = (
    ("Qformer.bert.", "model.vlm_att_encoder.bert."),
    ("query_tokens", "model.vlm_att_query"),
    ("ln_vision.", "model.vlm_att_ln."),
    ("Qformer.cls.", None),  # predicts words, in its pretraining
    ("visual_encoder.", None),  # the tower has a file of its own
    ("llm_proj.", None),  # to its own language model,
    ("llm_model.", None),
    ("t5_proj.", None),  # or to the other one
    ("t5_model.", None),
)
_BERT: Renames = (
    ("bert.", "model.vlm_att_encoder.bert."),
    ("cls.", None),  # predicts words and next sentences
)
_ADAPTERS: Renames = (("model.mm_projector.", "model.mm_projector."), ("model.vlm_att_", "model.vlm_att_"))
_OLD_NORM = {".gamma": ".weight", ".beta": ".bias"}  # TensorFlow's words; BERT's own file still has them


@dataclass(frozen=True)
class Published:
    """One file or folder of weights.

    Args:
        parts: what it is asked for: prefixes of our names.
        stored: by our names.
        dropped, unexpected: names as stored: known and not needed; known to nobody.
    """

    path: Path
    parts: tuple[str, ...]
    renames: Renames
    stored: Mapping[str, Stored]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]

    def stored_name(self, name: str) -> str:
        """What this file calls a weight of ours, for messages."""
        released = release_name(name, projector_depth=2)
        for stored, release in self.renames:
            if release is not None and released.startswith(release):
                return stored + released.removeprefix(release)
        return released


def llama(folder: Path) -> Published:
    """The language model of a Hugging Face folder. Raises `CheckpointError`, as all here."""
    return _published(folder, TensorFolder(folder), _LLAMA, "language.")


def eva(file: Path) -> Published:
    """The vision tower."""
    return _published(file, TensorFile(file), _EVA, "vision.")


def instruct_blip(file: Path) -> Published:
    """InstructBLIP's Q-Former, its queries and the norm of the image rows."""
    return _published(file, TensorFile(file), _INSTRUCT_BLIP, "text_decoder.")


def bert(folder: Path, *, layers: int) -> Published:
    """The first `layers` of BERT; no cross-attention, and no row for [DEC]."""
    return _published(folder, TensorFolder(folder), _BERT, "text_decoder.", text_layers=layers)


def adapters(file: Path, *, text_layers: int | None) -> Published:
    """The published code's `mm_projector.bin`: projectors and text decoder after its stage 1."""
    return _published(
        file, TensorFile(file), _ADAPTERS, "compressor.", "text_decoder.", text_layers=text_layers
    )


def _published(
    path: Path,
    weights: TensorFile | TensorFolder,
    renames: Renames,
    *parts: str,
    text_layers: int | None = None,
) -> Published:
    stored: dict[str, Stored] = {}
    dropped: list[str] = []
    unexpected: list[str] = []
    for name in weights:
        ours = _our_name(name, renames)
        if ours is None or is_surplus(ours, text_layers=text_layers):
            dropped.append(name)
        elif ours.startswith(parts):
            stored[ours] = Stored(weights, name)
        else:
            unexpected.append(name)
    return Published(path, parts, renames, stored, tuple(dropped), tuple(unexpected))


def _our_name(name: str, renames: Renames) -> str | None:
    """As `names.our_name`: None when it is dropped on purpose, "" when nobody knows it."""
    fitting = [(prefix, release) for prefix, release in renames if name.startswith(prefix)]
    if not fitting:
        return None if our_name(name) is None else ""
    prefix, release = max(fitting, key=lambda pair: len(pair[0]))
    if release is None:
        return None
    released = release + name.removeprefix(prefix)
    for old, new in _OLD_NORM.items() if renames is _BERT else ():
        released = released.removesuffix(old) + new if released.endswith(old) else released
    return our_name(released)
