"""Random checkpoints: the layout of a release, reproducible, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamavid.calibration.histogram import ChannelStatistics
from llamavid.errors import DeviceError, UsageError
from llamavid.model.llamavid import load_model
from llamavid.model.random_checkpoint import FileFormat, main, write_random_checkpoint
from llamavid.model.random_tokenizers import bert_vocabulary, sentencepiece_model
from llamavid.model.random_weights import (
    SIZE_7B,
    SIZE_13B,
    TINY,
    Kind,
    Size,
    checkpoint_parameters,
    tower_file_parameters,
    tower_parameters,
)

FEW_BLOCKS = replace(TINY, vision_width=88, vision_depth=1)  # its tower file is smaller than its shards
QUESTION = "What is happening in the video?"


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `checkpoint/`, read from the shard that the index names."""
    (index,) = (folder / "checkpoint").glob("*.index.json")
    places = json.loads(index.read_text())["weight_map"]
    shards = {name: load(folder / "checkpoint" / name) for name in set(places.values())}
    return {key: shards[name][key] for key, name in places.items()}


def load(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    return torch.load(file, weights_only=True)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoint" / "config.json").read_text())


def file_hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random") / "tiny", TINY, dtype=torch.float32)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny checkpoint with some fields changed."""
    return lambda **fields: write_random_checkpoint(tmp_path / "variant", replace(TINY, **fields))


# Layout


def test_the_folder_holds_the_files_of_a_release(tiny: Path) -> None:
    shards = [f"checkpoint/pytorch_model-{number:05d}-of-00006.bin" for number in range(1, 7)]
    assert sorted(file_hashes(tiny)) == sorted(
        [
            "bert-base-uncased/config.json",
            "bert-base-uncased/tokenizer_config.json",
            "bert-base-uncased/vocab.txt",
            "checkpoint/config.json",
            "checkpoint/pytorch_model.bin.index.json",
            "checkpoint/special_tokens_map.json",
            "checkpoint/tokenizer.model",
            "checkpoint/tokenizer_config.json",
            "eva_vit_g.pth",
            "image_processor/preprocessor_config.json",
            *shards,
        ]
    )


def test_the_index_names_every_tensor_once_and_adds_up(tiny: Path) -> None:
    shards = [load(file) for file in sorted((tiny / "checkpoint").glob("*.bin"))]
    index = json.loads((tiny / "checkpoint" / "pytorch_model.bin.index.json").read_text())
    assert sorted(key for shard in shards for key in shard) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in shards for t in shard.values())
    assert all(sum(t.nbytes for t in shard.values()) <= TINY.shard_bytes for shard in shards)


def test_keys_of_releases_that_a_loader_must_drop_are_there(tiny: Path) -> None:
    model, tower = weights(tiny), load(tiny / "eva_vit_g.pth")
    inv_freq = model["model.layers.1.self_attn.rotary_emb.inv_freq"]
    torch.testing.assert_close(inv_freq[1], torch.tensor(10_000.0 ** (-2 / 32)))
    position_ids = model["model.vlm_att_encoder.bert.embeddings.position_ids"]
    assert torch.equal(position_ids, torch.arange(512)[None])
    assert {"norm.weight", "norm.bias", "head.weight", "head.bias"} <= set(tower)


@pytest.mark.parametrize(("size", "last"), [(TINY, 2), (SIZE_7B, 39), (SIZE_13B, 39)])
def test_only_a_tower_as_deep_as_the_released_one_has_a_block_to_drop(size: Size, last: int) -> None:
    keys = [p.key for p in tower_file_parameters(size) if p.key.startswith("blocks.")]
    assert max(int(key.split(".")[1]) for key in keys) == last


def test_the_q_former_attends_to_the_image_in_every_other_layer(tiny: Path) -> None:
    model = weights(tiny)
    key = "model.vlm_att_encoder.bert.encoder.layer.{}.crossattention.self.key.weight"
    assert [key.format(i) in model for i in range(4)] == [True, False, True, False]
    assert model[key.format(0)].shape == (96, 176)
    assert model["model.vlm_att_query"].shape == (1, 32, 96)
    assert "model.vlm_att_bert_proj.weight" not in model


def test_the_text_decoder_has_one_row_more_than_its_vocabulary(tiny: Path) -> None:
    entries = (tiny / "bert-base-uncased" / "vocab.txt").read_text().splitlines()
    rows = weights(tiny)["model.vlm_att_encoder.bert.embeddings.word_embeddings.weight"]
    assert len(rows) == len(entries) + 1


@pytest.mark.parametrize(("size", "published"), [(SIZE_7B, 6_738_415_616), (SIZE_13B, 13_015_864_320)])
def test_the_large_sizes_have_the_parameter_count_of_llama_2(size: Size, published: int) -> None:
    language = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
    parameters = [p for p in checkpoint_parameters(size) if p.fixed is None]
    assert sum(math.prod(p.shape) for p in parameters if p.key.startswith(language)) == published


def test_the_vision_tower_of_7b_has_the_shapes_of_eva_g() -> None:
    shapes = {p.key: p.shape for p in tower_parameters(SIZE_7B)}
    assert shapes["blocks.38.attn.qkv.weight"] == (4224, 1408)
    assert shapes["blocks.0.mlp.fc1.weight"] == (6144, 1408)
    assert shapes["pos_embed"] == (1, 257, 1408)
    assert "blocks.39.norm1.weight" not in shapes


# Values


def test_the_seed_alone_decides_the_values(tiny: Path, tmp_path: Path) -> None:
    smaller = replace(TINY, shard_bytes=300_000, layers=1)
    other = write_random_checkpoint(
        tmp_path / "other", smaller, dtype=torch.float32, file_format="safetensors"
    )
    ours, theirs = weights(tiny), weights(other)
    assert set(theirs) == {key for key in ours if not key.startswith("model.layers.1.")}
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_a_smaller_dtype_holds_the_same_values_rounded(tiny: Path, tmp_path: Path) -> None:
    half = write_random_checkpoint(tmp_path / "half", TINY, dtype=torch.bfloat16)
    exact, rounded = weights(tiny), weights(half)
    kept = {key for key in exact if key.endswith(("inv_freq", "position_ids"))}
    assert all(torch.equal(rounded[key], exact[key]) for key in kept)
    assert all(torch.equal(rounded[key], exact[key].bfloat16()) for key in set(exact) - kept)
    assert config(half)["torch_dtype"] == "bfloat16"


def test_two_runs_write_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    again = write_random_checkpoint(tmp_path / "again", TINY, dtype=torch.float32)
    assert file_hashes(again) == file_hashes(tiny)


def test_another_seed_or_another_name_gives_other_values(tiny: Path, tmp_path: Path) -> None:
    other = weights(write_random_checkpoint(tmp_path / "other", TINY, seed=1, dtype=torch.float32))
    ours = weights(tiny)
    query, key = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(ours[query], other[query])
    assert not torch.equal(ours[query], ours[key])


def test_no_bias_is_zero_and_norms_are_near_one(tiny: Path) -> None:
    everything = weights(tiny) | load(tiny / "eva_vit_g.pth")
    biases = [tensor for key, tensor in everything.items() if key.endswith("bias")]
    norms = [t for key, t in everything.items() if key.endswith("norm.weight") or "LayerNorm.weight" in key]
    assert all((bias != 0).all() for bias in biases)
    assert all(abs(float(norm.mean()) - 1) < 0.1 for norm in norms)  # std 0.1 over 96 or more numbers


# Heavy tails


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "heavy"
    return write_random_checkpoint(folder, TINY, dtype=torch.float32, heavy_tails=True)


def kurtosis(values: Tensor) -> float:
    """Excess: 0 of a normal distribution."""
    centered = values.double() - values.double().mean()
    return float((centered**4).mean() / (centered**2).mean() ** 2) - 3


def test_heavy_tails_change_matrices_and_the_gains_of_norms_alone(tiny: Path, heavy: Path) -> None:
    normal = weights(tiny) | load(tiny / "eva_vit_g.pth")
    tailed = weights(heavy) | load(heavy / "eva_vit_g.pth")
    changed = {key for key, tensor in normal.items() if not torch.equal(tensor, tailed[key])}
    kinds = {p.key: p.kind for p in [*checkpoint_parameters(TINY), *tower_file_parameters(TINY)]}
    assert changed == {key for key, kind in kinds.items() if kind is not Kind.OTHER}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert {"blocks.0.norm1.weight", "model.norm.weight"} <= changed
    assert not {"model.embed_tokens.weight", "blocks.0.norm1.bias", "pos_embed"} & changed


def test_heavy_tails_are_heavier_and_as_wide(tiny: Path, heavy: Path) -> None:
    for key in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"):
        normal, tailed = weights(tiny)[key], weights(heavy)[key]
        assert abs(kurtosis(normal)) < 0.2
        assert kurtosis(tailed) > 2  # 6 in the long run, 44,000 numbers
        assert float(tailed.std() / normal.std()) == pytest.approx(1, abs=0.05)


def test_two_runs_with_heavy_tails_write_the_same_bytes(heavy: Path, tmp_path: Path) -> None:
    again = write_random_checkpoint(tmp_path / "again", TINY, dtype=torch.float32, heavy_tails=True)
    assert file_hashes(again) == file_hashes(heavy)


@torch.inference_mode()
def test_outlier_channels_show_in_activations_and_nothing_overflows(tiny: Path, heavy: Path) -> None:
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ratios = []
    for folder in (tiny, heavy):
        model, entered = load_model(folder / "checkpoint"), ChannelStatistics(TINY.vision_width)
        model.vision.blocks[2].norm1.register_forward_hook(
            lambda _m, _i, found, seen=entered: seen.add(found)
        )
        tokens = model.frame_tokens(model.encode_frames(pixels), QUESTION)
        logits = model.language(inputs_embeds=tokens.reshape(1, -1, TINY.hidden)).logits
        assert torch.isfinite(logits).all()
        assert float(logits.abs().max()) < 65504  # float16 holds it too
        ratios.append(entered.largest.max() / np.median(entered.largest))
    assert ratios[0] < 3
    assert ratios[1] > 10


# Variants


def test_raw_bert_has_its_first_layers_a_projection_and_no_queries(variant: Callable[..., Path]) -> None:
    model = weights(variant(bert_type="raw_bert_layer:2"))
    bert = "model.vlm_att_encoder.bert"
    assert model["model.vlm_att_bert_proj.weight"].shape == (96, 176)
    assert model[f"{bert}.embeddings.token_type_embeddings.weight"].shape == (2, 96)
    for layer in (0, 1):
        assert model[f"{bert}.encoder.layer.{layer}.crossattention.self.key.weight"].shape == (96, 96)
    absent = ("model.vlm_att_query", "model.vlm_att_ln", f"{bert}.encoder.layer.2.")
    assert not any(key.startswith(absent) or "_query." in key for key in model)


def test_a_q_former_of_another_image_width_has_a_projection(variant: Callable[..., Path]) -> None:
    model = weights(variant(text_image_width=64))
    assert model["model.vlm_att_bert_proj.weight"].shape == (64, 176)
    assert model["model.vlm_att_ln.weight"].shape == (64,)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("linear", {"weight": (128, 176), "bias": (128,)}),
        ("mlp2x_gelu", {"0.weight": (128, 176), "0.bias": (128,), "2.weight": (128, 128), "2.bias": (128,)}),
    ],
)
def test_the_projector_has_the_keys_of_its_kind(
    variant: Callable[..., Path], kind: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    model = weights(variant(mm_projector_type=kind))
    found = {key: tuple(t.shape) for key, t in model.items() if key.startswith("model.mm_projector.")}
    assert found == {f"model.mm_projector.{key}": shape for key, shape in shapes.items()}


def test_a_tower_in_the_checkpoint_differs_from_the_one_beside_it(variant: Callable[..., Path]) -> None:
    folder = variant(tower_in_checkpoint=True)
    model, tower = weights(folder), load(folder / "eva_vit_g.pth")
    inside = {key: t for key, t in model.items() if key.startswith("model.vision_tower.vision_tower.")}
    assert len(inside) == len(tower_parameters(TINY))
    assert not torch.equal(inside["model.vision_tower.vision_tower.cls_token"], tower["cls_token"])


def test_other_variants_are_written_where_a_loader_reads_them(variant: Callable[..., Path]) -> None:
    folder = variant(kv_heads=2, rope_factor=16, image_size=336, compress_type=None)
    settings = config(folder)
    assert weights(folder)["model.layers.0.self_attn.v_proj.weight"].shape == (64, 128)
    assert settings["num_key_value_heads"] == 2
    assert settings["rope_scaling"] == {"type": "linear", "factor": 16.0}
    assert settings["max_token"] == 65536
    assert settings["compress_type"] is None
    constants = json.loads((folder / "image_processor" / "preprocessor_config.json").read_text())
    assert constants["crop_size"] == constants["size"] == 336
    assert load(folder / "eva_vit_g.pth")["pos_embed"].shape == (1, 257, 176)


@pytest.mark.parametrize(
    "fields",
    [
        {"bert_type": "qformer"},
        {"bert_type": "raw_bert_layer:5"},
        {"bert_type": "raw_bert_layer:0"},
        {"compress_type": "grid"},
        {"mm_projector_type": "mlp0x_gelu"},
        {"kv_heads": 3},
        {"image_size": 225},
        {"rope_factor": 0.5},
    ],
)
def test_a_variant_that_cannot_be_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))} .*; expected "):
        replace(TINY, **fields)


# Whole or not at all


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; expected a new or empty folder"):
        write_random_checkpoint(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_and_missing_parents_are_welcome(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "deep" / "down"):
        assert write_random_checkpoint(folder, TINY) == folder
        assert (folder / "eva_vit_g.pth").is_file()


def test_a_run_cut_short_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(written: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tmp_path / "out", TINY, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_named_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(UsageError, match=r"out\.partial is there from a run that did not finish"):
        write_random_checkpoint(tmp_path / "out", TINY)
    assert (tmp_path / "out.partial").is_dir()


def test_a_disk_that_is_too_small_is_noticed_before_writing(tmp_path: Path) -> None:
    exabytes = replace(TINY, mlp=10**15)
    with pytest.raises(DeviceError, match=r"GB free; expected 15360000\d+\.\d+ GB"):
        write_random_checkpoint(tmp_path / "out", exabytes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path: Path, file_format: FileFormat) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))  # bytes of one file
    try:
        with pytest.raises(DeviceError, match=r"could not be written whole .* Look at the room"):
            write_random_checkpoint(tmp_path / "out", FEW_BLOCKS, file_format=file_format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_random_checkpoint(tmp_path / "out", TINY, progress=lambda *step: seen.append(step))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


# Command


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    variant = ["--format", "safetensors", "--compress-type", "none", "--heavy-tails"]
    assert main(["--size", "tiny", "-o", str(folder), *variant]) == 0
    made, following = capsys.readouterr().out.splitlines()
    assert made.startswith(f"{folder}: tiny, ")
    assert "float16" in made
    assert following == f"Next: llamavid export {folder / 'checkpoint'} -o BUNDLE"
    assert config(folder)["compress_type"] is None
    assert (folder / "checkpoint" / "model.safetensors.index.json").is_file()


def test_the_command_ends_a_mistake_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny", "-o", str(tmp_path), "--kv-heads", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: kv_heads 3; expected a divisor of 4 heads"]


def test_the_command_names_a_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--size", "tiny", "-o", str(tmp_path / "file" / "out")]) == 1
    assert "could not be written" in capsys.readouterr().err


# Tokenizers


@pytest.fixture(scope="module", params=[448, 32_000])
def pieces(request: pytest.FixtureRequest) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(request.param))


def test_the_language_vocabulary_begins_as_llamas(pieces: sentencepiece.SentencePieceProcessor) -> None:
    assert pieces.GetPieceSize() in (448, 32_000)
    assert [pieces.IdToPiece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    assert all(pieces.IsByte(i) for i in range(3, 259))


def test_common_words_are_one_token(pieces: sentencepiece.SentencePieceProcessor) -> None:
    expected = ["▁What", "▁is", "▁happening", "▁in", "▁the", "▁video", "?"]
    assert pieces.EncodeAsPieces(QUESTION) == expected


@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_survives_encoding(pieces: sentencepiece.SentencePieceProcessor, text: str) -> None:
    assert pieces.DecodeIds(pieces.EncodeAsIds(text)) == text


# U+2581 is SentencePiece's own space, so it alone comes back as another character.
@given(text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_any_text_is_encoded_as_bytes_if_need_be(
    pieces: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    ids = pieces.EncodeAsIds(text)
    assert pieces.unk_id() not in ids
    assert pieces.DecodeIds(ids) == text


def test_the_large_text_vocabulary_has_berts_special_ids() -> None:
    vocabulary = bert_vocabulary(30_522, leading_unused=99)
    assert len(set(vocabulary)) == 30_522
    assert vocabulary[0] == "[PAD]"
    assert vocabulary[99:105] == ["[unused98]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!"]


def test_the_text_vocabulary_spells_every_ascii_question(tiny: Path) -> None:
    file = tiny / "bert-base-uncased" / "vocab.txt"
    question = tokenizers.BertWordPieceTokenizer(str(file), lowercase=True)
    assert question.encode(QUESTION).tokens[1:-1] == ["what", "is", "happening", "in", "the", "video", "?"]
    assert "[UNK]" not in question.encode(string.printable).tokens


@pytest.mark.parametrize("fields", [{"vocab": 353}, {"text_vocab": 100}])
def test_a_vocabulary_without_room_for_ascii_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="vocabulary"):
        write_random_checkpoint(tmp_path / "out", replace(TINY, **fields))
    assert not list(tmp_path.iterdir())
