"""The exported Vicuna loads as a plain LLaMA and says what our model says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from llamavid.errors import BundleError, UsageError
from llamavid.export.huggingface import HuggingFaceOptions, export_huggingface
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import model_from_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.tokenizer import LanguageTokenizer
from llamavid.vicuna_folder import read_note
from tests.conftest import golden_checkpoint

TEXTS = ["What is the man doing?", "Two  spaces, é and\na line", "ASSISTANT: red"]


@torch.inference_mode()
def logits(model: LlamaForCausalLM) -> Tensor:
    ids = torch.randint(3, 440, (1, 40), generator=torch.Generator().manual_seed(1))
    found: Tensor = model(input_ids=ids).logits.float()
    return found


@pytest.mark.parametrize("family", ["short-video", "long-video"])
def test_transformers_loads_it_with_our_logits(family: str, tmp_path: Path) -> None:
    recorded = golden_checkpoint(family)
    export_huggingface(
        recorded, tmp_path / "v", options=HuggingFaceOptions(dtype="float32", shard_bytes=100_000)
    )
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "v", dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(loaded, LlamaForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = model_from_checkpoint(recorded, dtype=torch.float32, device="cpu").language.eval()
    assert torch.equal(logits(loaded.eval()), logits(ours))
    assert len(list((tmp_path / "v").glob("model-*.safetensors"))) > 1


def test_float16_is_the_dtype_it_loads_in_by_itself(tmp_path: Path) -> None:
    recorded = golden_checkpoint("long-video")
    export_huggingface(recorded, tmp_path / "v")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "v", dtype="auto")
    assert loaded.dtype is torch.float16
    ours = model_from_checkpoint(recorded, dtype=torch.float16, device="cpu").language
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_generation_stops_at_our_end_token(tmp_path: Path) -> None:
    recorded = golden_checkpoint("long-video")
    export_huggingface(recorded, tmp_path / "v")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "v")
    assert loaded.generation_config.eos_token_id == recorded.config.language.eos_id
    assert loaded.generation_config.max_length == 65536


def test_the_context_is_written_as_hugging_face_counts_it(tmp_path: Path) -> None:
    """Engines multiply it by the factor: 65536 here would become a million."""
    export_huggingface(golden_checkpoint("long-video"), tmp_path / "v")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["max_position_embeddings"] == 4096
    assert config["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 16.0}
    assert AutoConfig.from_pretrained(tmp_path / "v").rope_parameters["factor"] == 16.0


@pytest.mark.parametrize("settings", ["the release's", "none"])
def test_its_tokenizer_gives_our_ids(settings: str, tmp_path: Path) -> None:
    """Of a tokenizer like LLaMA's own, which keeps white space as it is."""
    folder = write_random_checkpoint(tmp_path / "release", TINY)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if settings == "none":
            (folder / "checkpoint" / name).unlink(missing_ok=True)
    export_huggingface(open_checkpoint(folder / "checkpoint"), tmp_path / "v")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "v")
    ours = LanguageTokenizer(tmp_path / "v" / "tokenizer.model")
    assert [theirs(text).input_ids for text in TEXTS] == [ours.ids([text]).tolist() for text in TEXTS]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_the_readme_warns_where_linear_rope_is_ignored(tmp_path: Path) -> None:
    export_huggingface(golden_checkpoint("long-video"), tmp_path / "long")
    text = (tmp_path / "long" / "README.md").read_text()
    assert "Edge-LLM 0.11 ignores `linear`" in text
    assert '{"rope_type": "proportional", "factor": 16.0, "partial_rotary_factor": 1.0}' in text
    export_huggingface(golden_checkpoint("short-video"), tmp_path / "short")
    assert "RoPE" not in (tmp_path / "short" / "README.md").read_text()


def test_proportional_rope_with_a_whole_factor_is_linear_rope() -> None:
    """What the README tells users of Edge-LLM: every frequency divided by the factor, none left alone."""
    recorded = golden_checkpoint("long-video")
    model = model_from_checkpoint(recorded, dtype=torch.float32, device="cpu").language
    linear = model.model.rotary_emb.inv_freq
    language = recorded.config.language
    plain = language.rope_theta ** -(torch.arange(0, language.head_dim, 2) / language.head_dim)
    assert torch.allclose(linear, plain / 16, rtol=1e-6)


def test_for_the_pytorch_backend_the_folder_has_our_architecture_and_module(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("REGISTERED = True\n")
    recorded = golden_checkpoint("long-video")
    export_huggingface(recorded, tmp_path / "v", module=module)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["architectures"] == ["LlamaVidVicunaForCausalLM"]
    assert config["max_position_embeddings"] == 65536  # rows of the RoPE table there
    assert (tmp_path / "v" / "llamavid_vicuna" / "__init__.py").read_text() == "REGISTERED = True\n"
    assert read_note(tmp_path / "v").format == "pytorch"
    assert "enable_block_reuse: false" in (tmp_path / "v" / "README.md").read_text()


def test_an_export_does_not_replace_what_it_was_not_asked_to(tmp_path: Path) -> None:
    recorded = golden_checkpoint("short-video")
    export_huggingface(recorded, tmp_path / "v")
    with pytest.raises(BundleError, match="exists already"):
        export_huggingface(recorded, tmp_path / "v")
    export_huggingface(recorded, tmp_path / "v", options=HuggingFaceOptions(dtype="bfloat16", replace=True))
    assert json.loads((tmp_path / "v" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_dtype_that_is_not_written_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype 'int8'; expected float16 or bfloat16 or float32"):
        replace(HuggingFaceOptions(), dtype="int8")
