"""Public implementations of the same networks agree with ours, under one set of random weights.

The recordings say what the published code computes; transformers is a second witness, whose classes take
the weights by the names of the release, past our table of names.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamavid.config import LanguageConfig
from llamavid.export.attention import rope_tables
from llamavid.model import LlamaVid, load_model
from llamavid.model.parts import llama_config
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_tokenizers import bert_vocabulary
from llamavid.model.random_weights import QUERIES, TINY, Size
from llamavid.tokenizer import QuestionTokenizer
from tests.conftest import largest_relative_error

RELATIVE_ERROR = 1e-5  # float32, the sums in another order
IDS = torch.tensor([[7, 20, 33, 41, 52, 8], [7, 99, 8, 0, 0, 0]])  # two questions of a frame, one padded
MASK = (IDS > 0).long()


@dataclass(frozen=True)
class Shared:
    """A random checkpoint: as our model, and as it is stored."""

    size: Size
    ours: LlamaVid
    stored: dict[str, Tensor]  # by the names of the release
    tower: dict[str, Tensor]  # of `eva_vit_g.pth`

    def bert(self) -> dict[str, Tensor]:
        """The text decoder's tensors that a BERT calls the same."""
        root = "model.vlm_att_encoder.bert."
        names = [key for key in self.stored if key.startswith(root) and not key.endswith("position_ids")]
        return {name.removeprefix(root): self.stored[name] for name in names}

    def weight_and_bias(self, name: str) -> tuple[Tensor, Tensor]:
        return self.stored[f"{name}.weight"], self.stored[f"{name}.bias"]


def shared(folder: Path, size: Size) -> Shared:
    write_random_checkpoint(folder, size, dtype=torch.float32)
    shards = [torch.load(file, weights_only=True) for file in (folder / "checkpoint").glob("*.bin")]
    stored = {key: tensor for shard in shards for key, tensor in shard.items()}
    tower = torch.load(folder / "eva_vit_g.pth", weights_only=True)
    return Shared(size, load_model(folder / "checkpoint"), stored, tower)


@pytest.fixture(scope="module")
def q_former(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return shared(tmp_path_factory.mktemp("random") / "q_former", TINY)


@pytest.fixture(scope="module")
def raw_bert(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    size = replace(TINY, bert_type="raw_bert_layer:3", vision_width=88, vision_depth=1)
    return shared(tmp_path_factory.mktemp("random") / "raw_bert", size)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def agree(found: Tensor, expected: Tensor) -> bool:
    return largest_relative_error(found.numpy(), expected.numpy()) <= RELATIVE_ERROR


# Networks


@torch.inference_mode()
def test_the_vision_encoder_is_instructblips_before_its_final_norm(q_former: Shared) -> None:
    config = q_former.ours.config.vision
    witness = InstructBlipVisionModel(
        InstructBlipVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    )
    witness.post_layernorm = nn.Identity()
    witness.load_state_dict(instructblip_tower(q_former.tower))
    pixels = noise(2, 3, config.image_size, config.image_size)
    assert agree(q_former.ours.encode_frames(pixels), witness.eval()(pixels).last_hidden_state)


def instructblip_tower(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's names as InstructBLIP's, which has one bias for queries, keys (zero) and values."""
    table = {
        r"cls_token": "embeddings.class_embedding",
        r"pos_embed": "embeddings.position_embedding",
        r"patch_embed\.proj\.(.*)": r"embeddings.patch_embedding.\1",
        r"blocks\.(\d+)\.norm(\d)\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
        r"blocks\.(\d+)\.attn\.qkv\.weight": r"encoder.layers.\1.self_attn.qkv.weight",
        r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layers.\1.self_attn.projection.\2",
        r"blocks\.(\d+)\.mlp\.(.*)": r"encoder.layers.\1.mlp.\2",
    }
    found = {
        match.expand(theirs): tensor
        for key, tensor in tower.items()
        for pattern, theirs in table.items()
        if (match := re.fullmatch(pattern, key))
    }
    for key, q_bias in tower.items():
        if key.endswith("q_bias"):
            block = key.split(".")[1]
            v_bias = tower[key.replace("q_bias", "v_bias")]
            bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
            found[f"encoder.layers.{block}.self_attn.qkv.bias"] = bias
    return found


@torch.inference_mode()
def test_the_q_former_is_instructblips(q_former: Shared) -> None:
    size, ours = q_former.size, q_former.ours
    witness = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            vocab_size=size.text_vocab + 1,
            hidden_size=size.text_width,
            intermediate_size=size.text_mlp,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.text_heads,
            encoder_hidden_size=size.vision_width,
            cross_attention_frequency=2,
        )
    )
    renamed = {
        key.replace(".self.", ".attention.").replace("embeddings.LayerNorm", "embeddings.layernorm"): tensor
        for key, tensor in q_former.bert().items()
    }
    witness.load_state_dict(renamed)
    features = 0.01 * noise(1, 257, size.vision_width)  # small, so that the epsilon of the norm shows
    image = functional.layer_norm(
        features, (size.vision_width,), *q_former.weight_and_bias("model.vlm_att_ln"), 1e-5
    )
    hidden = witness.eval()(
        input_ids=IDS,
        attention_mask=torch.cat([torch.ones(2, QUERIES), MASK], dim=1),
        query_embeds=q_former.stored["model.vlm_att_query"].expand(2, -1, -1),
        encoder_hidden_states=image.expand(2, -1, -1),
    ).last_hidden_state[:, :QUERIES]
    assert agree(ours.text_decoder(features, IDS, MASK), hidden)


@torch.inference_mode()
def test_raw_bert_is_a_bert_decoder_with_cross_attention(raw_bert: Shared) -> None:
    size, ours = raw_bert.size, raw_bert.ours
    config = BertConfig(
        vocab_size=size.text_vocab + 1,
        hidden_size=size.text_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=3,
        num_attention_heads=size.text_heads,
        is_decoder=True,
        add_cross_attention=True,
    )
    witness = BertModel(config, add_pooling_layer=False)
    witness.load_state_dict(raw_bert.bert())
    features = noise(1, 257, size.vision_width)
    image = functional.linear(features[:, 1:], *raw_bert.weight_and_bias("model.vlm_att_bert_proj"))
    hidden = witness.eval()(
        input_ids=IDS, attention_mask=MASK, encoder_hidden_states=image.expand(2, -1, -1)
    ).last_hidden_state
    words = MASK.bool()
    assert agree(ours.text_decoder(features, IDS, MASK)[words], hidden[words])


@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_the_rope_tables_are_those_of_transformers(factor: float) -> None:
    language = LanguageConfig(
        hidden=128,
        layers=1,
        heads=4,
        kv_heads=4,
        head_dim=32,
        mlp_width=344,
        vocab_size=448,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=factor,
        context_length=int(4096 * factor),
    )
    witness = LlamaRotaryEmbedding(llama_config(language))
    positions = torch.arange(language.context_length)[None]
    theirs = witness(torch.zeros(1), positions)
    for ours, both_halves in zip(rope_tables(language), theirs, strict=True):
        expected = both_halves[0, :, : language.head_dim // 2].numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1.2e-7)  # one unit in the last place


# The text decoder's tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT folder that also knows letters and pieces outside ASCII."""
    letters = "αβγжщя中文字日本한글ßøæ×°—“”…€"
    entries = [*bert_vocabulary(300, leading_unused=5), *letters, *("##" + letter for letter in letters)]
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return folder


STRINGS = [
    "",
    " ",
    "What is happening in the video?",
    "WHAT\tIS\nTHIS\r\n?",
    "don't stop, re-enter (now)... ok?!",
    "Café naïve Ångström ÉCOLE z\u0301",
    "中文 and 日本 mixed한글",
    "Straße Ære øl αβγ ЖЩЯ",
    "“quoted” — 20° × 3€…",
    "zero\u200bwidth soft\u00adhyphen nbsp\u00a0space\ufeff",
    "bell\x07 null\x00 replacement\ufffd",
    "emoji 🐰 and 👩‍👧",
    "a" * 101,
    "x" * 99 + " y",
    "the rabbit ran " * 200,
    "[MASKED] <image> </s> [ sep ]",
]


# One class since transformers 5.
@pytest.mark.parametrize("tokenizer", ["BertTokenizer", "BertTokenizerFast"])
@pytest.mark.parametrize("text", STRINGS, ids=range(len(STRINGS)))
def test_a_question_has_the_ids_of_transformers(vocabulary: Path, tokenizer: str, text: str) -> None:
    assert ids_of_ours(vocabulary, text) == ids_of_theirs(vocabulary, tokenizer, text)


# Python and the tokenizers library go by different Unicode versions: only what none has changed.
SETTLED = st.characters(exclude_categories=["Cs", "Cn"]).filter(
    lambda letter: unicodedata.ucd_3_2_0.category(letter) == unicodedata.category(letter)
)


@given(text=st.text(SETTLED, max_size=400))
def test_any_question_has_the_ids_of_transformers(vocabulary: Path, text: str) -> None:
    assert ids_of_ours(vocabulary, text) == ids_of_theirs(vocabulary, "BertTokenizer", text)


def ids_of_ours(folder: Path, text: str) -> list[int]:
    return QuestionTokenizer(folder / "vocab.txt").ids(text)[0].tolist()


def ids_of_theirs(folder: Path, tokenizer: str, text: str) -> list[int]:
    """As the reference makes it: `[DEC]` added, cut on the left at 256."""
    witness = getattr(transformers, tokenizer).from_pretrained(str(folder), truncation_side="left")
    witness.add_special_tokens({"bos_token": "[DEC]"})
    return list(witness(text, truncation=True, max_length=256)["input_ids"])
