"""The paper's ablations of a start checkpoint: fewer tokens a frame, more of them, another text decoder.

    write_variant(start, folder, Ablation(pool_grid=4))             # 1+16 tokens (Table 7)
    keep_only(model, Token.CONTENT)                                 # 1 token (Table 6)

A grid and BERT are things that a release can say in its config.json, and a variant is a start like any other.
No published config takes a token away: that is done to the model in memory, before it is trained and again
before it is asked.

Note [One token a frame]
    `keep_only` replaces the function that makes the other token by one that gives none, [T, 0, D]; nothing
    else changes, and what made that token gets no gradient.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamavid.config import ModelConfig, TextDecoder
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.save import save_release
from llamavid.model.tensor_files import read_json
from llamavid.train.fresh_weights import fresh_compressor, fresh_for_bert
from llamavid.train.stages import Stage, with_overrides

_BERT_STD = 0.02  # BERT's `initializer_range`


class Token(enum.Enum):
    """The two kinds of a frame's tokens; the value is what makes it in `Compressor`."""

    CONTEXT = "context_tokens"
    CONTENT = "content_tokens"


@dataclass(frozen=True)
class Ablation:
    """One model of the tables. The defaults are the paper's own: 1+1 tokens, Q-Former.

    Args:
        only: the one token that a frame keeps; None keeps both.
        pool_grid: content tokens along a side: 1 is `mean`.
        bert_layers: K of raw BERT; None is the Q-Former.
    """

    only: Token | None = None
    pool_grid: int = 1
    bert_layers: int | None = None


def write_variant(start: Path, folder: Path, ablation: Ablation, *, seed: int = 0) -> Path:
    """Writes the start that `ablation` is trained from, in the release layout; gives its checkpoint folder.

    Args:
        start: what `tiny_pretraining` wrote; it is copied whole.
        seed: of BERT's weights.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(start, partial)
    file = partial / "checkpoint" / "config.json"
    settings = read_json(file, "a LLaMA-VID checkpoint folder") | {
        "compress_type": "mean" if ablation.pool_grid == 1 else f"grid:{ablation.pool_grid}"
    }
    if ablation.bert_layers:
        _write_bert(partial / "checkpoint", settings, ablation.bert_layers, seed)
    else:
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    open_checkpoint(partial / "checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / "checkpoint"


def _write_bert(checkpoint: Path, settings: dict[str, Any], layers: int, seed: int) -> None:
    """Puts raw BERT, and a query projector that has read nothing else, in the place of the Q-Former."""
    model = model_from_checkpoint(open_checkpoint(checkpoint))
    weights: dict[str, Tensor] = {
        name: weight
        for name, weight in model.named_parameters()
        if not name.startswith(("vision.", "text_decoder."))
    }
    weights |= fresh_bert(model.config, layers=layers, seed=seed)
    for file in checkpoint.glob("pytorch_model*"):
        file.unlink()
    save_release(
        checkpoint,
        weights.items(),
        settings=settings | {"bert_type": bert_type(layers), "num_query": 0},
        copied_from=checkpoint,
        projector_depth=model.config.projector_depth,
        dtype=model.compressor.key_projector.weight.dtype,
    )


def fresh_bert(config: ModelConfig, *, layers: int, seed: int) -> dict[str, Tensor]:
    """A raw BERT of the Q-Former's width, heads and words, and its query projector, by our names, float32.

    As BERT is before it has read anything: normal with std 0.02, biases 0, norms 1 and 0. The projectors are
    Note [What is fresh] of `fresh_weights`.
    """
    text = dataclasses.replace(
        config.text_decoder,
        kind=TextDecoder.RAW_BERT,
        layers=layers,
        queries=0,
        projects_image=True,
        image_width=config.text_decoder.width,
    )
    width, hidden = config.vision.width, config.language.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = TextDecoderModel(text, feature_width=width, patches=config.vision.patches).apply(_as_bert)
    made = {f"text_decoder.{name}": weight.detach() for name, weight in bert.named_parameters()}
    made |= fresh_for_bert(width=width, text_width=text.width, layers=layers, std=_BERT_STD, seed=seed)
    compressor = fresh_compressor(width=width, hidden=hidden, text_width=text.width, depth=1, seed=seed)
    projector = {name: weight for name, weight in compressor.items() if ".query_projector." in name}
    return made | projector


def _as_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_BERT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def bert_type(layers: int) -> str:
    """What config.json calls it."""
    return f"raw_bert_layer:{layers}"


def stage_of(stage: Stage, ablation: Ablation) -> Stage:
    """The stage as the published code runs it for this model.

    It freezes the text decoder of a `..._freeze` Q-Former alone: raw BERT learns from stage 1 on.
    """
    if ablation.bert_layers is None:
        return stage
    trains = tuple(dict.fromkeys([*stage.trains, "text_decoder."]))
    return with_overrides(stage, {"bert_type": bert_type(ablation.bert_layers), "trains": trains})


def ablate(model: LlamaVid, ablation: Ablation) -> None:
    """Takes from a loaded model what no config.json can; before it is trained, and before it is asked."""
    if ablation.only:
        keep_only(model, ablation.only)


def keep_only(model: LlamaVid, token: Token) -> None:
    """Takes the other token from every frame. Note [One token a frame]."""
    hidden = model.config.language.hidden
    (other,) = set(Token) - {token}

    def nothing(features: Tensor, query: Tensor | None = None) -> Tensor:
        """features [F, R, C], queries [B, M, C] -> [max(F, B), 0, D]."""
        rows = max(len(features), 0 if query is None else len(query))
        return features.new_empty(rows, 0, hidden)

    setattr(model.compressor, other.value, nothing)


def shared_data(world: Path, folder: Path, *, most_seconds: int) -> tuple[Path, Path, int]:
    """Captions and instructions that fit every ablation, as files; and how many items had to be left out.

    A turn shows all frames again, and 16 content tokens make 17 of each: a conversation that shows more than
    `most_seconds` of clip, turn by turn, is cut into several, and a longer clip is left out. One frame is one
    second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, out = [], 0
    for name in ("captions.json", "instructions.json"):
        items = json.loads((world / name).read_text(encoding="utf-8"))
        short = [item for item in items if item["seconds"] <= most_seconds]
        out += len(items) - len(short)
        parts = [_moved(part, world, folder) for item in short for part in _parts(item, most_seconds)]
        (folder / name).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
        written.append(folder / name)
    return written[0], written[1], out


def _parts(item: dict[str, Any], most_seconds: int) -> list[dict[str, Any]]:
    """The conversation as several; the first thing said in each shows the clip."""
    turns = max(1, most_seconds // max(1, item["seconds"]))
    said = item["conversations"]
    parts = []
    for number, first in enumerate(range(0, len(said), 2 * turns)):
        some = [dict(part) for part in said[first : first + 2 * turns]]
        if "<image>" not in some[0]["value"]:
            some[0]["value"] = f"<image>\n{some[0]['value']}"
        parts.append({**item, "id": f"{item['id']}-{number}", "conversations": some})
    return parts


def _moved(item: dict[str, Any], world: Path, folder: Path) -> dict[str, Any]:
    kind = "video" if "video" in item else "image"
    return {**item, kind: os.path.relpath((world / item[kind]).resolve(), folder.resolve())}
