"""What a start is asked to be made of, and what: the places of the files, and the words of a release.

Gives the settings of `config.json` that follow from them. Opens no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.errors import CheckpointError, UsageError
from llamavid.model.dimensions import bert_type
from llamavid.model.tensor_files import read_json

_KEPT_SETTINGS = (  # of the language model's config.json; the rest would speak of another model
    *("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "head_dim", "hidden_act", "hidden_size"),
    *("initializer_range", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "pretraining_tp"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "torch_dtype", "dtype"),
    *("rope_parameters", "rope_scaling", "rope_theta", "use_cache"),
)


@dataclass(frozen=True)
class Sources:
    """Where the weights of a start lie.

    Args:
        language: a LLaMA folder: config.json, `.bin` or safetensors weights, tokenizer.model.
        vision_tower: `eva_vit_g.pth`.
        text_tokenizer: BERT's folder, or its vocab.txt; raw BERT needs the folder, with its weights.
        image_processor: the folder or file of the preprocessing constants, or an image size in pixels.
        text_decoder: InstructBLIP's file; None for raw BERT, and when adapters are given.
        adapters: the published code's `mm_projector.bin`, what its stage 1 leaves; then nothing is fresh.
    """

    language: Path
    vision_tower: Path
    text_tokenizer: Path
    image_processor: str
    text_decoder: Path | None = None
    adapters: Path | None = None

    @property
    def vocabulary(self) -> Path:
        """BERT's vocab.txt."""
        return self.text_tokenizer / "vocab.txt" if self.text_tokenizer.is_dir() else self.text_tokenizer

    @property
    def text_file(self) -> Path:
        """What the text decoder's weights are read from."""
        return self.adapters or self.text_decoder or self.vocabulary.parent


@dataclass(frozen=True)
class Kind:
    """What is to be made, in the words of a release's config.json.

    Args:
        bert_type: qformer_pretrain or raw_bert_layer:K.
        queries: M, which the Q-Former must have; None takes what it has.

    Raises:
        UsageError: there is no such projector.
    """

    bert_type: str = "qformer_pretrain"
    mm_projector_type: str = "mlp2x_gelu"
    compress_type: str | None = "mean"
    queries: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"linear|mlp[1-9]x_gelu", self.mm_projector_type):
            raise UsageError(f"projector {self.mm_projector_type!r}", expected="linear or mlpKx_gelu, K to 9")

    @property
    def projector_depth(self) -> int:
        """Linear layers of `mm_projector`."""
        return 1 if self.mm_projector_type == "linear" else int(self.mm_projector_type[3])

    @property
    def text_layers(self) -> int | None:
        """K of raw BERT; None for a Q-Former."""
        return bert_type({"bert_type": self.bert_type})[1]


def check_choice(sources: Sources, kind: Kind) -> None:
    """A text decoder comes from one place. Raises `UsageError`."""
    if kind.text_layers and (sources.text_decoder or kind.queries):
        raise UsageError(
            "raw BERT with a Q-Former's file or queries",
            expected="BERT's own folder alone, as the text tokenizer",
        )
    if sources.text_decoder and sources.adapters:
        raise UsageError(
            "both a text decoder and adapters", expected="one of them: adapters hold a text decoder"
        )
    if not kind.text_layers and not sources.text_decoder and not sources.adapters:
        raise UsageError(
            "no weights for the Q-Former", next_step="Pass --text-decoder instruct_blip_vicuna7b_trimmed.pth."
        )


def start_settings(sources: Sources, kind: Kind) -> dict[str, Any]:
    """What config.json will say, but for what only the weights tell. Raises `CheckpointError`."""
    file = sources.language / "config.json"
    language = read_json(file, "a LLaMA folder")
    if language.get("model_type") != "llama":
        raise CheckpointError(
            f"{file} has model_type {language.get('model_type')!r}",
            expected="llama",
            next_step="Start from Vicuna, or another LLaMA.",
        )
    kept = {name: language[name] for name in _KEPT_SETTINGS if name in language}
    return kept | {
        "model_type": "llava",
        "bert_type": kind.bert_type,
        "compress_type": kind.compress_type,
        "image_aspect_ratio": "pad",
        "max_token": language.get("max_position_embeddings"),
        "mm_projector_type": kind.mm_projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "tie_word_embeddings": bool(language.get("tie_word_embeddings")),
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
