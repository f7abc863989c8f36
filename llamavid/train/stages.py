"""The three training stages of the paper, as data (paper section 3.3; facts section 9).

A stage says what learns, how fast, on how much; `loop.py` does it. Anything may
be overridden by name: `with_overrides(STAGES["stage1"], {"batch_size": 8})`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from llamavid.errors import UsageError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.tensor_files import read_json

_CONTEXT_PATH = (
    "text_decoder.",
    "compressor.query_projector.",
    "compressor.key_projector.",
    "compressor.value_projector.",
)


class Dialogue(str, enum.Enum):
    """How a sample becomes text."""

    PLAIN_GUIDED = "plain_guided"  # the instruction goes to the text decoder alone, the text is the caption
    VICUNA = "imgsp_v1"  # a conversation; every turn has its own frame tokens


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        trains: prefixes, by our names, of the weights that learn.
        freezes: prefixes of those among them that do not.
        bert_type: what `config.json` of the outcome says.
        max_tokens: longest sequence, and no longer than the checkpoint's context.
        extends_context: where `max_tokens` is more than that context, it grows by linear RoPE.
        batch_size: samples a step, over all processes.
        warmup: fraction of the steps.
    """

    name: str
    trains: tuple[str, ...]
    freezes: tuple[str, ...]
    bert_type: str
    dialogue: Dialogue
    max_tokens: int
    batch_size: int
    learning_rate: float
    epochs: float = 1.0
    warmup: float = 0.03
    weight_decay: float = 0.0
    extends_context: bool = False
    follows: str | None = None  # the stage whose outcome it starts from

    def learns(self, name: str) -> bool:
        """Whether the weight of that name, by our names, learns."""
        return name.startswith(self.trains) and not name.startswith(self.freezes or ("\0",))

    def freeze(self, model: nn.Module) -> list[str]:
        """Sets `requires_grad` of every weight; the names of those that learn."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.learns(name))
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


STAGE1 = Stage(
    name="stage1",
    trains=("compressor.",),
    freezes=(),
    bert_type="qformer_pretrain_freeze",
    dialogue=Dialogue.PLAIN_GUIDED,
    max_tokens=2048,
    batch_size=256,
    learning_rate=1e-3,
)
STAGE2 = Stage(
    name="stage2",
    trains=("text_decoder.", "compressor.", "language."),
    freezes=(),
    bert_type="qformer_pretrain",
    dialogue=Dialogue.VICUNA,
    max_tokens=2048,
    batch_size=128,
    learning_rate=2e-5,
    follows="stage1",
)
STAGE3 = Stage(
    name="stage3",
    trains=("language.", "compressor.content_projector."),
    freezes=_CONTEXT_PATH,
    bert_type="qformer_pretrain_freeze_all",
    dialogue=Dialogue.VICUNA,
    max_tokens=65536,
    batch_size=8,
    learning_rate=2e-5,
    extends_context=True,
    follows="stage2",
)
STAGES = {stage.name: stage for stage in (STAGE1, STAGE2, STAGE3)}


def with_overrides(stage: Stage, overrides: Mapping[str, Any]) -> Stage:
    """`stage` with fields replaced. Raises `UsageError` for a field it does not have."""
    known = {field.name for field in dataclasses.fields(Stage)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise UsageError(f"{stage.name} has no setting {unknown[0]!r}", expected=", ".join(sorted(known)))
    values = dict(overrides)
    for name in {"trains", "freezes"} & set(values):
        values[name] = tuple(values[name])
    if "dialogue" in values:
        values["dialogue"] = _dialogue(values["dialogue"])
    return dataclasses.replace(stage, **values)


def _dialogue(name: str) -> Dialogue:
    try:
        return Dialogue(name)
    except ValueError as error:
        forms = " or ".join(form.value for form in Dialogue)
        raise UsageError(f"dialogue {name!r} does not exist", expected=forms) from error


def with_context(stage: Stage, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with a context of `stage.max_tokens`, where the stage extends a shorter one.

    RoPE's factor is ceil(max_tokens / the context before any extension), as the reference sets it for a
    checkpoint that was never extended; one that was gets the factor of its original context too.
    """
    language = checkpoint.config.language
    if not stage.extends_context or stage.max_tokens <= language.context_length:
        return checkpoint
    factor = max(float(math.ceil(stage.max_tokens / _original_context(checkpoint))), language.rope_factor)
    longer = dataclasses.replace(language, rope_factor=factor, context_length=stage.max_tokens)
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, language=longer))


def _original_context(checkpoint: Checkpoint) -> int:
    """Positions that the language model had before RoPE was scaled; `config.json` keeps saying them."""
    settings = read_json(checkpoint.folder / "config.json", "a LLaMA-VID checkpoint folder")
    return int(settings["max_position_embeddings"])
