"""A start for training: every published weight arrives where it belongs, and training starts from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate.commands.launch import launch_command_parser
from torch import Tensor

from llamavid.config import TextDecoder
from llamavid.errors import UsageError
from llamavid.model import load_model
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid
from llamavid.model.random_configs import bert_config, checkpoint_config
from llamavid.model.random_tokenizers import write_bert_tokenizer, write_json, write_llama_tokenizer
from llamavid.model.random_weights import TINY, Parameter, Size, checkpoint_parameters, tower_file_parameters
from llamavid.train import start as start_command
from llamavid.train.examples import Sample
from llamavid.train.loop import Settings, train
from llamavid.train.run import parsed, run_from
from llamavid.train.stages import STAGE1, STAGE2, with_overrides
from llamavid.train.start import main

SCRIPTS = Path(start_command.__file__).parent / "scripts"
LANGUAGE = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
BERT_LAYERS = 4
RAW = replace(TINY, bert_type="raw_bert_layer:2")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Files:
    """Published files, small, in a folder; and what is in them."""

    folder: Path
    language: Tensors
    tower: Tensors
    instruct_blip: Tensors
    bert: Tensors
    adapters: Tensors

    def command(self, *more: str, output: str = "start", without: Iterable[str] = ()) -> list[str]:
        options = {
            "--language": "vicuna",
            "--vision-tower": "eva_vit_g.pth",
            "--text-decoder": "instruct_blip.pth",
            "--text-tokenizer": "bert-base-uncased",
        }
        given = [
            part for name, file in options.items() if name not in without for part in (name, self.at(file))
        ]
        return [*given, "--image-processor", "224", "-o", self.at(output), *more]

    def at(self, name: str) -> str:
        return str(self.folder / name)


def drawn(parameters: Iterable[Parameter], dtype: torch.dtype) -> Tensors:
    return {one.key: one.drawn(0, dtype) for one in parameters}


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Those whose names begin with an old prefix, with the new one."""
    return {
        new + name.removeprefix(old): tensors[name]
        for old, new in pairs
        for name in tensors
        if name.startswith(old)
    }


def instruct_blip_tensors(release: Tensors) -> Tensors:
    """By InstructBLIP's names, with what else such a file may hold."""
    found = renamed(
        release,
        ("model.vlm_att_encoder.bert.", "Qformer.bert."),
        ("model.vlm_att_query", "query_tokens"),
        ("model.vlm_att_ln.", "ln_vision."),
    )
    others = ("Qformer.cls.predictions.bias", "visual_encoder.cls_token", "llm_proj.weight", "t5_proj.bias")
    return found | {name: torch.ones(3) for name in others}


def bert_tensors() -> Tensors:
    """By the names of bert-base-uncased: no cross-attention, no [DEC], norms as TensorFlow named them."""
    whole = replace(RAW, bert_type=f"raw_bert_layer:{BERT_LAYERS}")
    found = renamed(
        drawn(checkpoint_parameters(whole), torch.float32), ("model.vlm_att_encoder.bert.", "bert.")
    )
    found = {name: tensor for name, tensor in found.items() if "crossattention" not in name}
    words = "bert.embeddings.word_embeddings.weight"
    found[words] = found[words][:-1].clone()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in found.items()
    }
    return {**old, "bert.pooler.dense.bias": torch.ones(3), "cls.predictions.bias": torch.ones(3)}


def write_language(folder: Path, tensors: Tensors, size: Size) -> None:
    """Vicuna's folder: two `.bin` shards and an index."""
    folder.mkdir()
    ours = checkpoint_config(size, torch.float16)
    kept = {
        name: ours[name]
        for name in ours
        if not name.startswith("mm_") and name not in ("bert_type", "max_token")
    }
    write_json(folder / "config.json", {**kept, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    write_llama_tokenizer(folder, vocab_size=size.vocab)
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, some in shards.items():
        torch.save({name: tensors[name] for name in some}, folder / file)
    weight_map = {name: file for file, some in shards.items() for name in some}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    half = drawn(checkpoint_parameters(TINY), torch.float16)
    full = drawn(checkpoint_parameters(TINY), torch.float32)
    made = Files(
        folder=tmp_path,
        language={name: tensor for name, tensor in half.items() if name.startswith(LANGUAGE)},
        tower=drawn(tower_file_parameters(TINY), torch.float16),
        instruct_blip=instruct_blip_tensors(full),
        bert=bert_tensors(),
        adapters=renamed(full, *[(p, p) for p in ("model.mm_projector.", "model.vlm_att_")]),
    )
    write_language(tmp_path / "vicuna", made.language, TINY)
    torch.save(made.tower, tmp_path / "eva_vit_g.pth")
    torch.save({"model": made.instruct_blip}, tmp_path / "instruct_blip.pth")
    torch.save(made.adapters, tmp_path / "mm_projector.bin")
    bert = tmp_path / "bert-base-uncased"
    bert.mkdir()
    write_json(bert / "config.json", bert_config(TINY))
    write_bert_tokenizer(bert, vocab_size=TINY.text_vocab, leading_unused=TINY.text_leading_unused)
    torch.save(made.bert, bert / "pytorch_model.bin")
    return made


def made_start(files: Files, *more: str, without: Iterable[str] = ()) -> LlamaVid:
    assert main(files.command(*more, without=without)) == 0
    return load_model(files.folder / "start" / "checkpoint")


def assert_holds(model: LlamaVid, places: dict[str, Tensor]) -> None:
    weights = dict(model.named_parameters())
    for name, tensor in places.items():
        assert torch.equal(weights[name], tensor.float()), name


def test_every_published_weight_arrives_where_it_belongs(files: Files) -> None:
    model = made_start(files)
    blip, language = files.instruct_blip, files.language
    theirs, ours = "Qformer.bert.encoder.layer", "text_decoder.layers"
    llama, norm, weight = "model.layers.1", "output.LayerNorm", "dense.weight"
    assert_holds(
        model,
        {
            "vision.cls_token": files.tower["cls_token"],
            "vision.blocks.2.attn.qkv.weight": files.tower["blocks.2.attn.qkv.weight"],
            "text_decoder.queries": blip["query_tokens"],
            "text_decoder.image_norm.weight": blip["ln_vision.weight"],
            "text_decoder.image_norm.bias": blip["ln_vision.bias"],
            "text_decoder.word_embeddings.weight": blip["Qformer.bert.embeddings.word_embeddings.weight"],
            "text_decoder.embedding_norm.bias": blip["Qformer.bert.embeddings.LayerNorm.bias"],
            f"{ours}.0.attention.query.weight": blip[f"{theirs}.0.attention.self.query.weight"],
            f"{ours}.0.attention.output.bias": blip[f"{theirs}.0.attention.output.dense.bias"],
            f"{ours}.2.cross_attention.key.weight": blip[f"{theirs}.2.crossattention.self.key.weight"],
            f"{ours}.2.cross_attention.norm.bias": blip[f"{theirs}.2.crossattention.{norm}.bias"],
            f"{ours}.3.feed_forward.up.weight": blip[f"{theirs}.3.intermediate.dense.weight"],
            f"{ours}.3.query_feed_forward.up.weight": blip[f"{theirs}.3.intermediate_query.{weight}"],
            f"{ours}.3.query_feed_forward.norm.weight": blip[f"{theirs}.3.output_query.LayerNorm.weight"],
            "language.model.embed_tokens.weight": language["model.embed_tokens.weight"],
            "language.model.layers.1.self_attn.k_proj.weight": language[f"{llama}.self_attn.k_proj.weight"],
            "language.model.layers.1.mlp.down_proj.weight": language[f"{llama}.mlp.down_proj.weight"],
            "language.model.norm.weight": language["model.norm.weight"],
            "language.lm_head.weight": language["lm_head.weight"],
        },
    )  # fmt: skip
    assert model.config.pool_grid == 1
    assert model.config.text_decoder.queries == 32
    assert model.config.preprocessing.pad_pictures


def test_nothing_but_the_projectors_is_fresh_and_what_is_not_needed_is_named(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files.command("--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert all(name.startswith("compressor.") for name in told["fresh"])
    assert len(told["fresh"]) == 2 * 5  # weights and biases of mm_projector's two and of three others
    assert {"Qformer.cls.predictions.bias", "visual_encoder.cls_token", "llm_proj.weight"} <= set(
        told["dropped"]
    )
    assert told["unexpected"] == []
    opened = open_checkpoint(told["checkpoint"])
    assert opened.unexpected == ()
    assert told["tensors"] == len([name for name in opened.tensors if not name.startswith("vision.")])
    record = json.loads((files.folder / "start" / "training.json").read_text())
    assert "stage" not in record
    assert record["sources"]["text_decoder"] == files.at("instruct_blip.pth")


def test_fresh_projectors_are_pytorch_s_own_and_a_function_of_the_seed(files: Files) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (
        load_model(write(files, seed, f"start-{index}")) for index, seed in enumerate(("1", "1", "2"))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in one.compressor.named_parameters():
        assert torch.equal(weight, two.compressor.get_parameter(name))
        assert not torch.equal(weight, other.compressor.get_parameter(name))
    for linear in (one.compressor.key_projector, one.compressor.value_projector):
        bound = linear.in_features**-0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() <= bound


def write(files: Files, seed: str, output: str) -> Path:
    assert main(files.command("--seed", seed, output=output)) == 0
    return files.folder / output / "checkpoint"


def test_safetensors_shards_linear_projector_and_every_patch(files: Files) -> None:
    vicuna = files.folder / "vicuna"
    for file in [*vicuna.glob("*.bin"), vicuna / "pytorch_model.bin.index.json"]:
        file.unlink()
    safetensors.torch.save_file(files.language, vicuna / "model.safetensors")
    model = made_start(files, "--projector", "linear", "--grid", "none")
    assert_holds(model, {"language.lm_head.weight": files.language["lm_head.weight"]})
    assert (model.config.projector_depth, model.config.pool_grid) == (1, None)


def test_a_grid_of_content_tokens(files: Files) -> None:
    assert made_start(files, "--grid", "4", "--queries", "32").config.pool_grid == 4


def test_tied_embeddings_are_written_out(files: Files) -> None:
    vicuna, tied = files.folder / "vicuna", {**files.language}
    del tied["lm_head.weight"]
    for file in vicuna.glob("*.bin*"):
        file.unlink()
    torch.save(tied, vicuna / "pytorch_model.bin")
    config = json.loads((vicuna / "config.json").read_text())
    write_json(vicuna / "config.json", {**config, "tie_word_embeddings": True})
    model = made_start(files)
    assert_holds(model, {"language.lm_head.weight": files.language["model.embed_tokens.weight"]})


def test_weights_keep_their_dtype_and_shards_are_many(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_command, "_SHARD_BYTES", 300_000)
    made_start(files)
    checkpoint = files.folder / "start" / "checkpoint"
    index = json.loads((checkpoint / "pytorch_model.bin.index.json").read_text())
    stored: Tensors = {}
    for name in set(index["weight_map"].values()):
        shard = torch.load(checkpoint / name, weights_only=True)
        assert {index["weight_map"][weight] for weight in shard} == {name}
        stored |= shard
    assert len(list(checkpoint.glob("pytorch_model-*.bin"))) > 5
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert stored["lm_head.weight"].dtype == torch.float16
    assert torch.equal(stored["model.vlm_att_query"], files.instruct_blip["query_tokens"])
    assert stored["model.vlm_att_query"].dtype == torch.float32


def test_raw_bert_starts_from_bert_itself(files: Files) -> None:
    model = made_start(files, "--bert-type", "raw", without=["--text-decoder"])
    assert model.config.text_decoder.kind is TextDecoder.RAW_BERT
    assert model.config.text_decoder.layers == 2
    bert, ours, theirs = files.bert, "text_decoder.layers.1", "bert.encoder.layer.1"
    types = bert["bert.embeddings.token_type_embeddings.weight"]
    assert_holds(
        model,
        {
            "text_decoder.token_type_embeddings.weight": types,
            "text_decoder.embedding_norm.weight": bert["bert.embeddings.LayerNorm.gamma"],
            f"{ours}.feed_forward.norm.bias": bert[f"{theirs}.output.LayerNorm.beta"],
            f"{ours}.attention.value.weight": bert[f"{theirs}.attention.self.value.weight"],
        },
    )
    words = model.text_decoder.word_embeddings.weight
    assert torch.equal(words[:-1], bert["bert.embeddings.word_embeddings.weight"])
    assert 0.01 < words[-1].std() < 0.03  # [DEC], as BERT draws
    cross = model.text_decoder.layers[1].cross_attention
    assert 0.018 < cross.key.weight.std() < 0.022
    assert not cross.key.bias.any()
    assert (cross.norm.weight == 1).all()


def test_raw_bert_needs_its_folder_s_weights_and_no_more_layers_than_it_has(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--bert-type", "raw_bert_layer:5"]
    assert main(files.command(*more, without=["--text-decoder"])) == 1
    lacking = "lacks 16 tensors: bert.encoder.layer.4.attention.self.query.weight, "
    assert lacking in capsys.readouterr().err
    (files.folder / "bert-base-uncased" / "pytorch_model.bin").unlink()
    assert main(files.command(*more, without=["--text-decoder"])) == 1
    assert "bert-base-uncased holds no weights" in capsys.readouterr().err


def test_the_published_code_s_adapters_are_what_stage_1_leaves(files: Files, tmp_path: Path) -> None:
    more = ["--adapters", files.at("mm_projector.bin")]
    model = made_start(files, *more, without=["--text-decoder"])
    assert_holds(
        model,
        {
            "compressor.content_projector.2.weight": files.adapters["model.mm_projector.2.weight"],
            "compressor.key_projector.bias": files.adapters["model.vlm_att_key_projector.bias"],
            "compressor.value_projector.weight": files.adapters["model.vlm_att_val_projector.weight"],
            "text_decoder.queries": files.adapters["model.vlm_att_query"],
        },
    )
    curve = steps(STAGE2, files, tmp_path / "stage2")
    assert len(curve) == 2


def steps(stage: object, files: Files, output: Path) -> list[float]:
    """Losses of two steps from the start in `files`, on features that are handed in."""
    said = [
        {"from": "human", "value": "<image>\nwhat color is this?"},
        {"from": "gpt", "value": "red"},
    ]
    (files.folder / "picture.png").write_bytes(b"its features are handed in")
    data = files.folder / "data.json"
    items = [{"id": str(index), "image": "picture.png", "conversations": said} for index in range(4)]
    data.write_text(json.dumps(items))
    losses: list[float] = []

    def features(model: LlamaVid, sample: Sample) -> Tensor:
        generator = torch.Generator().manual_seed(int(sample.name))
        return torch.randn(2, 257, model.config.vision.width, generator=generator)

    train(
        with_overrides(stage, {"batch_size": 2}),  # type: ignore[arg-type]
        open_checkpoint(files.folder / "start" / "checkpoint"),
        [data],
        Settings(output, micro_batch=2, steps=2),
        features=features,
        on_step=lambda progress: losses.append(progress.loss),
    )
    return losses


def test_stage_1_starts_from_it_and_moves_the_projectors_alone(files: Files, tmp_path: Path) -> None:
    before = made_start(files)
    losses = steps(STAGE1, files, tmp_path / "stage1")
    assert len(losses) == 2
    after = dict(load_model(tmp_path / "stage1" / "checkpoint").named_parameters())
    moved = {name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])}
    assert moved
    assert all(name.startswith("compressor.") for name in moved)


def test_stage_2_does_not_start_where_stage_1_was_not(files: Files, tmp_path: Path) -> None:
    made_start(files)
    with pytest.raises(UsageError, match="expected an outcome of stage1 to start stage2"):
        steps(STAGE2, files, tmp_path / "stage2")


class Boom:
    """Unpickled in full, it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def spoil(files: Files, what: str) -> None:
    folder, blip = files.folder, dict(files.instruct_blip)
    if what == "missing":
        del blip["Qformer.bert.encoder.layer.1.attention.self.key.bias"]
    elif what == "telling":
        del blip["query_tokens"]
    elif what == "shape":
        blip["Qformer.bert.encoder.layer.1.attention.self.key.bias"] = torch.zeros(7)
    elif what == "rank":
        blip["query_tokens"] = torch.zeros(7)
    elif what == "vocabulary":
        words = "Qformer.bert.embeddings.word_embeddings.weight"
        blip[words] = blip[words][:-1].clone()
    elif what == "quantized":
        name = "Qformer.bert.encoder.layer.1.attention.self.key.weight"
        blip[name] = blip[name].to(torch.int8)
    torch.save({"model": blip}, folder / "instruct_blip.pth")
    if what == "malicious":
        torch.save({"model": {**blip, "boom": Boom(folder / "boom")}}, folder / "instruct_blip.pth")
    elif what == "unreadable":
        (folder / "instruct_blip.pth").write_bytes(b"no weights")
    elif what == "tower":
        wide = replace(TINY, vision_width=264)
        torch.save(drawn(tower_file_parameters(wide), torch.float16), folder / "eva_vit_g.pth")
    elif what == "no tower":
        (folder / "eva_vit_g.pth").unlink()
    elif what == "another model":
        write_json(folder / "vicuna" / "config.json", {"model_type": "mistral"})
    elif what == "no shard":
        (folder / "vicuna" / "pytorch_model-00002-of-00002.bin").unlink()
    elif what == "no tokenizer":
        (folder / "vicuna" / "tokenizer.model").unlink()
    elif what == "layers":
        config = folder / "vicuna" / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("missing", "instruct_blip.pth lacks 1 tensor: Qformer.bert.encoder.layer.1.attention.self.key.bias"),
        ("telling", "instruct_blip.pth has no query_tokens"),
        ("shape", r"Qformer.bert.encoder.layer.1.attention.self.key.bias has shape \[7\]; expected \[96\]"),
        ("rank", r"query_tokens has shape \[7\]; expected 3 dimensions"),
        ("vocabulary", "vocab.txt has 160 words; expected 159: the rows of .*instruct_blip.pth, less"),
        ("quantized", "attention.self.key.weight has dtype int8; expected floating-point weights"),
        ("malicious", "a file that needs a full unpickle can run code and is refused"),
        ("unreadable", "instruct_blip.pth cannot be read as PyTorch weights"),
        (
            "tower",
            "eva_vit_g.pth has width 264; expected 176, which the Q-Former of .*instruct_blip.pth reads",
        ),
        ("no tower", "eva_vit_g.pth is missing"),
        ("another model", "config.json has model_type 'mistral'; expected llama"),
        ("no shard", "pytorch_model-00002-of-00002.bin is missing"),
        ("no tokenizer", "tokenizer.model cannot be read"),
        ("layers", "vicuna lacks 9 tensors: model.layers.2.self_attn.q_proj.weight, "),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    what: str, line: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(files, what)
    before = sorted(files.folder.iterdir())
    assert main(files.command()) in (1, 2)
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(line, last), last
    assert sorted(files.folder.iterdir()) == before  # no output, no half of it, nothing that a pickle made


@pytest.mark.parametrize(
    ("more", "without", "line"),
    [
        ([], ["--text-decoder"], "no weights for the Q-Former. Pass --text-decoder"),
        (["--bert-type", "raw"], [], "raw BERT with a Q-Former's file or queries"),
        (["--adapters", "x"], [], "both a text decoder and adapters"),
        (["--queries", "16"], [], "has 32 queries; expected 16"),
        (["--projector", "conv"], [], "projector 'conv'; expected linear or mlpKx_gelu"),
        (["--bert-type", "gpt"], [], "--bert-type 'gpt'; expected qformer, raw or raw_bert_layer:K"),
        (["--grid", "0"], [], "--grid '0'; expected none, 1"),
        (["--grid", "17"], [], "compress_type 'grid:17'"),
        (["--seed", "x"], [], "--seed: invalid int value: 'x'"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    more: list[str], without: list[str], line: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files.command(*more, without=without)) in (1, 2)
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (files.folder / "start").exists()


def test_adapters_of_another_projector_or_without_one_are_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--adapters", files.at("mm_projector.bin")]
    assert main(files.command(*more, "--projector", "linear", without=["--text-decoder"])) == 1
    assert "mm_projector has 2 linear layers; expected 1 for 'linear'" in capsys.readouterr().err
    lacking = {n: t for n, t in files.adapters.items() if n != "model.vlm_att_val_projector.weight"}
    torch.save(lacking, files.folder / "mm_projector.bin")
    assert main(files.command(*more, without=["--text-decoder"])) == 1
    assert "lacks 1 tensor: model.vlm_att_val_projector.weight" in capsys.readouterr().err


def test_a_folder_in_use_stays_as_it_is(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.folder / "start").mkdir()
    (files.folder / "start" / "mine.txt").write_text("mine")
    assert main(files.command()) == 2
    assert "start is not empty; expected a new or empty folder" in capsys.readouterr().err
    assert [file.name for file in (files.folder / "start").iterdir()] == ["mine.txt"]


def test_the_7b_settings_are_the_paper_s() -> None:
    """Paper, section 3.3 and Table 7; the last line as the published scripts have it for eight GPUs."""
    dummies = parsed(["checkpoint=c", "data=d.json", "output=o"])
    runs = [run_from(f"stage{n}", SCRIPTS / f"stage{n}_7b.json", dummies) for n in (1, 2, 3)]
    stages = [run.stage for run in runs]
    assert [stage.batch_size for stage in stages] == [256, 128, 8]
    assert [stage.learning_rate for stage in stages] == [1e-3, 2e-5, 2e-5]
    assert [stage.max_tokens for stage in stages] == [2048, 2048, 65536]
    assert [(stage.epochs, stage.warmup, stage.weight_decay) for stage in stages] == [(1.0, 0.03, 0.0)] * 3
    assert [stage.bert_type.removeprefix("qformer_pretrain") for stage in stages] == [
        "_freeze",
        "",
        "_freeze_all",
    ]
    assert all(run.settings.gradient_checkpointing and run.paths.fps == 1.0 for run in runs)
    assert [run.settings.precision for run in runs] == ["bf16"] * 3
    assert [run.settings.micro_batch for run in runs] == [32, 4, 1]


@pytest.mark.parametrize(
    ("stage", "previous"), [("stage1", "start"), ("stage2", "stage1"), ("stage3", "stage2")]
)
def test_the_7b_script_launches_a_stage_on_what_the_one_before_it_left(
    stage: str, previous: str, tmp_path: Path
) -> None:
    told = launched(tmp_path, "accelerate", stage, "--set", "micro_batch=2")
    assert told[0] == "launch"
    launch = launch_command_parser().parse_args(told[1:])
    assert Path(launch.config_file).is_file()
    assert (launch.num_processes, launch.module, launch.training_script) == (4, True, "llamavid")
    told = launch.training_script_args
    assert told[:2] == ["train", stage]
    pairs = [told[index + 1] for index, word in enumerate(told) if word == "--set"]
    run = run_from(stage, Path(told[told.index("--config") + 1]), parsed(pairs))
    assert run.paths.checkpoint == Path(f"runs-7b/{previous}/checkpoint")
    assert run.settings.output == Path(f"runs-7b/{stage}")
    assert run.settings.micro_batch == 2


def test_the_7b_script_makes_the_start(tmp_path: Path) -> None:
    told = launched(tmp_path, "python", "start", "--seed", "3")
    assert told[:2] == ["-m", "llamavid.train.start"]
    options = start_command._parser().parse_args(told[2:])
    assert (options.output, options.queries, options.seed) == (Path("runs-7b/start"), 32, 3)


def test_the_7b_script_says_what_it_takes(tmp_path: Path) -> None:
    refused = subprocess.run(["sh", SCRIPTS / "train_7b.sh"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: sh train_7b.sh start|stage1|stage2|stage3")


def launched(folder: Path, program: str, *arguments: str) -> list[str]:
    """What the script would start, with 4 GPUs: a program of that name that says how it was called."""
    stub = folder / program
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "GPUS": "4"}
    script = ["sh", SCRIPTS / "train_7b.sh", *arguments]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()
