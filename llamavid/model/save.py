"""Writes a model in the release layout: what `load_model` and the published code read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamavid.model.names import release_name

_SHARD_BYTES = 5_000_000_000
_INDEX = "pytorch_model.bin.index.json"


def save_release(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    settings: Mapping[str, Any],
    copied_from: Path,
    projector_depth: int,
    dtype: torch.dtype,
) -> None:
    """Writes shards, index and `config.json`; tokenizer files are copied.

    Args:
        weights: by our names; each is cast and written in turn.
        settings: the whole `config.json`.
        copied_from: the folder whose tokenizer files come along.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights:
        stored = weight.detach().to("cpu", dtype).contiguous()
        if sum(tensor.nbytes for tensor in shards[-1].values()) + stored.nbytes > _SHARD_BYTES:
            shards.append({})
        shards[-1][release_name(name, projector_depth=projector_depth)] = stored
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", settings)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        if copied_from != folder and (copied_from / name).is_file():
            shutil.copyfile(copied_from / name, folder / name)


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
