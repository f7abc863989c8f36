"""A TensorRT-LLM checkpoint is the model it was made from, however it is split or quantized.

TensorRT-LLM is not here: a reader of the tests' own merges the ranks and runs them as transformers' LLaMA.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from llamavid.errors import BundleError, CheckpointError, DeviceError, UsageError
from llamavid.export.to_trtllm import build_command, export_trtllm
from llamavid.export.trtllm_formats import TrtllmScales
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.parts import language_model
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.tokenizer import LanguageTokenizer
from llamavid.vicuna_folder import read_note
from tests.conftest import golden_checkpoint
from tests.export.trtllm_reader import matrix, read_trtllm

# Wide enough for groups of 64 on 4 GPUs; 451 rows of vocabulary divide by neither 2 nor 4.
SIZE = replace(TINY, hidden=256, mlp=512, vocab=451, vision_depth=1, text_layers=1, rope_factor=16.0)

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random, RoPE divided by 16, as the long-video model's."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("random") / "release", SIZE)
    return opened(folder)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two key-value heads for four heads, positions as they are."""
    size = replace(SIZE, kv_heads=2, rope_factor=None)
    return opened(write_random_checkpoint(tmp_path_factory.mktemp("random") / "grouped", size))


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder / "checkpoint")


def reference(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, change: Change | None = None
) -> LlamaForCausalLM:
    """The checkpoint's language model in float32, of weights rounded to `dtype` or changed."""
    model = language_model(checkpoint.config.language)
    for name, parameter in model.named_parameters():
        weight = checkpoint.read(f"language.{name}", dtype).float()
        parameter.data = change(name, weight) if change else weight
    return model.eval()


@torch.inference_mode()
def logits(model: LlamaForCausalLM) -> Tensor:
    """Of 40 fixed tokens: far enough for a wrong RoPE factor to show."""
    ids = torch.randint(3, 440, (1, 40), generator=torch.Generator().manual_seed(1))
    found: Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_ranks_are_the_model_bit_for_bit(
    checkpoint: Checkpoint, tmp_path: Path, ranks: int, dtype: str
) -> None:
    export_trtllm(checkpoint, tmp_path / "v", options=TrtllmOptions(dtype=dtype, tensor_parallel=ranks))
    read = read_trtllm(tmp_path / "v")
    expected = reference(checkpoint, getattr(torch, dtype))
    assert torch.equal(logits(read), logits(expected))


@pytest.mark.parametrize("ranks", [1, 2])
def test_grouped_queries_stay_with_their_heads(grouped: Checkpoint, tmp_path: Path, ranks: int) -> None:
    export_trtllm(grouped, tmp_path / "v", options=TrtllmOptions(dtype="float32", tensor_parallel=ranks))
    assert torch.equal(logits(read_trtllm(tmp_path / "v")), logits(reference(grouped)))


def test_the_recorded_long_video_model_comes_back(tmp_path: Path) -> None:
    recorded = golden_checkpoint("long-video")
    export_trtllm(recorded, tmp_path / "v", options=TrtllmOptions(dtype="float32", tensor_parallel=2))
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["rotary_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 16.0}
    assert config["max_position_embeddings"] == 65536
    read, expected = read_trtllm(tmp_path / "v"), reference(recorded)
    assert torch.equal(logits(read), logits(expected))


def test_a_forgotten_rope_factor_would_show(checkpoint: Checkpoint) -> None:
    """The tests above would pass anything if 40 tokens did not feel it."""
    plain = reference(
        replace(
            checkpoint,
            config=replace(checkpoint.config, language=replace(checkpoint.config.language, rope_factor=1.0)),
        )
    )
    assert (logits(plain) - logits(reference(checkpoint))).abs().max() > 0.01


@pytest.mark.parametrize("ranks", [1, 4])
def test_int4_comes_back_as_the_levels_that_were_chosen(
    checkpoint: Checkpoint, tmp_path: Path, ranks: int
) -> None:
    options = TrtllmOptions(tensor_parallel=ranks, quantize="int4-awq", int4_group=64)
    export_trtllm(checkpoint, tmp_path / "v", options=options)
    expected = reference(checkpoint, change=rounded_int4(checkpoint, {}))
    assert torch.equal(logits(read_trtllm(tmp_path / "v")), logits(expected))


@pytest.mark.parametrize("ranks", [1, 2])
def test_int4_with_prequant_scales_divides_weights_by_what_multiplies_inputs(
    checkpoint: Checkpoint, tmp_path: Path, ranks: int
) -> None:
    language = checkpoint.config.language
    widths = {"attention.qkv": language.hidden, "attention.dense": language.hidden, "mlp.fc": language.hidden}
    random = torch.Generator().manual_seed(0)
    scales = {
        f"transformer.layers.{layer}.{name}": torch.rand(width, generator=random) + 0.5
        for layer in range(language.layers)
        for name, width in {**widths, "mlp.proj": language.mlp_width}.items()
    }
    options = TrtllmOptions(tensor_parallel=ranks, quantize="int4-awq", int4_group=128)
    export_trtllm(checkpoint, tmp_path / "v", options=options, scales=TrtllmScales(prequant=scales))
    expected = reference(checkpoint, change=rounded_int4(checkpoint, scales, group=128))
    difference = (logits(read_trtllm(tmp_path / "v")) - logits(expected)).abs().max()
    assert difference < 1e-4  # float32: (w / s) * s in another order
    plain = reference(checkpoint, change=rounded_int4(checkpoint, {}, group=128))
    assert (logits(plain) - logits(expected)).abs().max() > 100 * difference


def test_fp8_comes_back_as_e4m3_of_one_scale_on_every_rank(checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = TrtllmOptions(tensor_parallel=2, quantize="fp8", kv_cache="fp8", target="h200")
    activation = {"transformer.layers.0.mlp.fc": 44.8}
    export_trtllm(checkpoint, tmp_path / "v", options=options, scales=TrtllmScales(activation=activation))
    assert torch.equal(
        logits(read_trtllm(tmp_path / "v")), logits(reference(checkpoint, change=rounded_fp8(checkpoint)))
    )
    ranks = [load_file(tmp_path / "v" / f"rank{rank}.safetensors") for rank in range(2)]
    scale = "transformer.layers.0.mlp.fc.weights_scaling_factor"
    assert torch.equal(ranks[0][scale], ranks[1][scale])
    for name, factor in (("mlp.fc", 0.1), ("mlp.gate", 0.1), ("mlp.proj", 1.0)):
        assert ranks[0][f"transformer.layers.0.{name}.activation_scaling_factor"].item() == pytest.approx(
            factor
        )
    assert ranks[1]["transformer.layers.1.attention.kv_cache_scaling_factor"].tolist() == [1.0]


def test_int8_keeps_weights_whole_for_trtllm_build_to_round(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_trtllm(checkpoint, tmp_path / "v", options=TrtllmOptions(quantize="int8"))
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert "lm_head" in config["quantization"]["exclude_modules"]
    rank = load_file(tmp_path / "v" / "rank0.safetensors")
    assert {tensor.dtype for tensor in rank.values()} == {torch.float16}
    assert torch.equal(logits(read_trtllm(tmp_path / "v")), logits(reference(checkpoint, torch.float16)))


def test_an_int8_cache_has_the_measured_scale_of_each_layer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    largest = {f"transformer.layers.{layer}.attention": 12.7 * (layer + 1) for layer in range(2)}
    export_trtllm(
        checkpoint,
        tmp_path / "v",
        options=TrtllmOptions(kv_cache="int8"),
        scales=TrtllmScales(kv_cache=largest),
    )
    rank = load_file(tmp_path / "v" / "rank0.safetensors")
    found = [rank[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"] for layer in range(2)]
    assert [one.item() for one in found] == pytest.approx([0.1, 0.2])
    assert [(one.dtype, tuple(one.shape)) for one in found] == [(torch.float32, (1,))] * 2


def test_the_vocabulary_is_padded_with_rows_that_say_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_trtllm(checkpoint, tmp_path / "v", options=TrtllmOptions(tensor_parallel=4))
    ranks = [load_file(tmp_path / "v" / f"rank{rank}.safetensors") for rank in range(4)]
    assert [len(rank["lm_head.weight"]) for rank in ranks] == [113] * 4  # 452 rows
    assert not ranks[3]["lm_head.weight"][-1].any()
    assert json.loads((tmp_path / "v" / "config.json").read_text())["vocab_size"] == 451
    assert all(len(rank["transformer.vocab_embedding.weight"]) == 451 for rank in ranks)


def test_the_folder_tells_the_runner_and_the_next_command(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export_trtllm(checkpoint, tmp_path / "my vicuna", options=TrtllmOptions(tensor_parallel=2))
    note = read_note(made.folder)
    assert (note.format, note.tensor_parallel) == ("engine", 2)
    assert note.language == checkpoint.config.language
    assert LanguageTokenizer(made.folder / "tokenizer.model").size > 0
    assert made.build_command.startswith(f"trtllm-build --checkpoint_dir '{tmp_path}/my vicuna' ")
    for words in (
        "--max_seq_len 65536",
        "--max_multimodal_len 65536",
        "--max_num_tokens 65536",
        "--gemm_plugin float16",
        "--workers 2",
    ):
        assert words in made.build_command
    there = f"{tmp_path}/my vicuna"
    copied = f"cp '{there}/vicuna.json' '{there}/tokenizer.model' '{there}-engine'"
    assert made.build_command.endswith(f" && {copied}")


# What cannot be is one line, and nothing is left behind.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "fp8"}, "quantize fp8 for a100, compute capability 8.0"),
        ({"kv_cache": "fp8"}, "kv-cache fp8 for a100"),
        ({"tensor_parallel": 3}, "tensor-parallel 3"),
        ({"quantize": "int3"}, "quantize 'int3'"),
    ],
)
def test_what_does_not_exist_is_said_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrtllmOptions(**options)


def test_fp8_on_an_a100_offers_what_an_a100_has() -> None:
    with pytest.raises(UsageError, match="--quantize int8 or int4-awq"):
        TrtllmOptions(quantize="fp8")


def test_heads_that_do_not_divide_name_the_numbers_that_do(grouped: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tensor-parallel 4 for 2 key-value heads.*--tensor-parallel 1, 2"):
        export_trtllm(grouped, tmp_path / "v", options=TrtllmOptions(tensor_parallel=4))
    assert list(tmp_path.iterdir()) == []


def test_groups_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    recorded = golden_checkpoint("short-video")  # its MLP has 344 columns
    with pytest.raises(UsageError, match="groups of 128, with a matrix of 344 columns"):
        export_trtllm(recorded, tmp_path / "v", options=TrtllmOptions(quantize="int4-awq"))


def test_an_int8_cache_without_ranges_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kv-cache int8 without measured ranges of 2 layers"):
        export_trtllm(checkpoint, tmp_path / "v", options=TrtllmOptions(kv_cache="int8"))


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (TrtllmScales(prequant={"layers.0.qkv": torch.ones(256)}), "scales for 'layers.0.qkv'"),
        (
            TrtllmScales(prequant={"transformer.layers.0.mlp.proj": torch.ones(256)}),
            r"shape \[256\].*\[512\]",
        ),
        (TrtllmScales(prequant={"transformer.layers.0.mlp.fc": torch.zeros(256)}), "all above 0"),
        (TrtllmScales(kv_cache={"transformer.layers.9.attention": 1.0}), "layers.9"),
    ],
)
def test_scales_that_fit_nothing_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, scales: TrtllmScales, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export_trtllm(checkpoint, tmp_path / "v", scales=scales)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_its_vicuna_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "release", SIZE)
    adapters: dict[str, Tensor] = {}
    for shard in (folder / "checkpoint").glob("pytorch_model-*.bin"):
        stored = torch.load(shard, weights_only=True)
        adapters |= {name: tensor for name, tensor in stored.items() if "vlm_att" in name or "mm_" in name}
        shard.unlink()
    (folder / "checkpoint" / "pytorch_model.bin.index.json").unlink()
    torch.save(adapters, folder / "checkpoint" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lacks .* tensors: language\.lm_head\.weight"):
        opened(folder)


def test_a_small_disk_is_told_before_an_hour_of_writing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=21_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DeviceError, match=r"0\.0 GB free; expected .* GB for the TensorRT-LLM checkpoint"):
        export_trtllm(checkpoint, tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_the_old_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_trtllm(checkpoint, tmp_path / "v")
    before = (tmp_path / "v" / "rank0.safetensors").read_bytes()

    def interrupt(what: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    again = TrtllmOptions(dtype="bfloat16", replace=True)
    with pytest.raises(KeyboardInterrupt):
        export_trtllm(checkpoint, tmp_path / "v", options=again, on_progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["v"]
    assert (tmp_path / "v" / "rank0.safetensors").read_bytes() == before
    export_trtllm(checkpoint, tmp_path / "v", options=again)
    assert json.loads((tmp_path / "v" / "config.json").read_text())["dtype"] == "bfloat16"


def test_only_a_folder_of_ours_is_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="that is not an exported Vicuna"):
        export_trtllm(checkpoint, tmp_path / "v", options=TrtllmOptions(replace=True))


def test_a_short_video_model_is_built_for_its_own_context() -> None:
    language = golden_checkpoint("short-video").config.language
    line = build_command(Path("vicuna"), language, TrtllmOptions(quantize="fp8", target="h100"))
    assert "--max_seq_len 4096 " in line
    assert "--gemm_plugin auto " in line  # fp8 has a plugin of its own


MEASURE = """
import resource, sys
from pathlib import Path
from llamavid.export.to_trtllm import export_trtllm
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.model.checkpoint import open_checkpoint

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

checkpoint, before = open_checkpoint(sys.argv[1]), peak_bytes()
made = export_trtllm(checkpoint, Path(sys.argv[2]), options=TrtllmOptions(tensor_parallel=2))
print(made.size_bytes, peak_bytes() - before)
"""


def test_memory_is_that_of_a_matrix_and_a_shard_not_of_the_model(tmp_path: Path) -> None:
    """400 MB of weights in shards of 20 MB; a process of its own, as its peak is what is measured."""
    size = replace(SIZE, hidden=1024, heads=8, mlp=4096, layers=12, vocab=8000, shard_bytes=20_000_000)
    folder = write_random_checkpoint(tmp_path / "release", size)
    arguments = ["-c", MEASURE, str(folder / "checkpoint"), str(tmp_path / "v")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    written, grown = map(int, done.stdout.split())
    assert written > 400e6
    assert grown < 150e6


# Independent formulas of what each format leaves of a weight.


def rounded_int4(checkpoint: Checkpoint, prequant: dict[str, Tensor], group: int = 64) -> Change:
    inputs = {"q_proj": "attention.qkv", "k_proj": "attention.qkv", "v_proj": "attention.qkv"}
    inputs |= {
        "o_proj": "attention.dense",
        "gate_proj": "mlp.fc",
        "up_proj": "mlp.fc",
        "down_proj": "mlp.proj",
    }

    def change(name: str, weight: Tensor) -> Tensor:
        words = name.split(".")
        if "layers" not in words or words[-2] not in inputs:
            return weight.half().float()
        key = f"transformer.layers.{words[2]}.{inputs[words[-2]]}"
        smooth = prequant.get(key, torch.ones(weight.shape[1])).half().float()
        left = weight / smooth
        for row in range(0, left.shape[1], group):
            block = left[:, row : row + group]
            scale = (block.abs().amax(1, keepdim=True) / 7).half().float()
            left[:, row : row + group] = torch.clamp(torch.round(block / scale), -8, 7) * scale
        return left * smooth

    return change


def rounded_fp8(checkpoint: Checkpoint) -> Change:
    """Query, key and value share a scale: they are one matrix there."""

    def change(name: str, weight: Tensor) -> Tensor:
        if "proj" not in name:
            return weight.half().float()
        together = [name]
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
            together = [name.replace(name.split(".")[-2], f"{letter}_proj") for letter in "qkv"]
        largest = max(float(checkpoint.read(f"language.{one}").abs().max()) for one in together)
        scale = torch.tensor(largest / 448)
        return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    return change


def test_the_reader_reads_nibbles_as_the_format_says() -> None:
    """0x9E is row 0 = 0xE = -2, row 1 = 0x9 = -7."""
    config: dict[str, Any] = {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 1}}
    rank = {
        "a.weight": torch.tensor([[0x9E]], dtype=torch.uint8).view(torch.int8),
        "a.weights_scaling_factor": torch.tensor([[0.5], [2.0]]),
        "a.prequant_scaling_factor": torch.tensor([3.0]),
    }
    assert matrix(config, rank, "a").tolist() == [[-3.0], [-42.0]]
