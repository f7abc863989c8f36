"""The tiny model before its three stages: dimensions, tokenizers, and weights that nobody has aligned yet.

In the release layout, so that `llamavid train stage1` starts from it as it would from Vicuna, EVA and
InstructBLIP.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from llamavid.config import LanguageConfig, ModelConfig, TextDecoder, TextDecoderConfig, VisionConfig
from llamavid.model.dimensions import clip_preprocessing
from llamavid.model.llamavid import LlamaVid
from llamavid.model.random_tokenizers import write_bert_tokenizer, write_json, write_llama_tokenizer
from llamavid.model.save import save_release
from llamavid.prompt import find_template
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer
from llamavid.train.outcome import write_preprocessing

VOCABULARY, QUESTION_WORDS = 1024, 256
TINY_VISION = VisionConfig(image_size=112, patch_size=14, width=176, depth=4, heads=2, mlp_width=768)
TINY = ModelConfig(
    vision=TINY_VISION,
    text_decoder=TextDecoderConfig(
        kind=TextDecoder.Q_FORMER,
        width=128,
        layers=2,
        heads=4,
        mlp_width=256,
        vocab_size=QUESTION_WORDS + 1,
        max_positions=256,
        image_width=TINY_VISION.width,
        queries=8,
        projects_image=False,
    ),
    language=LanguageConfig(
        hidden=192,
        layers=4,
        heads=6,
        kv_heads=6,
        head_dim=32,
        mlp_width=512,
        vocab_size=VOCABULARY,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=1.0,
        context_length=2048,
    ),
    preprocessing=clip_preprocessing({"image_aspect_ratio": "pad"}, TINY_VISION.image_size),
    pool_grid=1,
    projector_depth=2,
)


def write_tokenizers(folder: Path, texts: Iterable[str]) -> None:
    """Writes `checkpoint/` with the language model's and `bert-base-uncased/` with the text decoder's.

    Args:
        texts: whose words the tokenizers shall know whole.
    """
    checkpoint, bert = folder / "checkpoint", folder / "bert-base-uncased"
    for made in (checkpoint, bert):
        made.mkdir(parents=True)
    words = f"{find_template('imgsp_v1').system} USER ASSISTANT " + " ".join(texts)
    write_llama_tokenizer(checkpoint, vocab_size=VOCABULARY, text=words)
    write_bert_tokenizer(bert, vocab_size=QUESTION_WORDS, leading_unused=5, text=words)
    write_json(bert / "config.json", {"num_attention_heads": TINY.text_decoder.heads})


def new_model(folder: Path, *, seed: int = 0) -> LlamaVid:
    """The model with weights by chance, and the tokenizers of `folder`."""
    torch.manual_seed(seed)
    model = LlamaVid(
        TINY,
        LanguageTokenizer(folder / "checkpoint" / "tokenizer.model"),
        QuestionTokenizer(folder / "bert-base-uncased" / "vocab.txt"),
    )
    model.apply(_initialize)
    nn.init.normal_(model.text_decoder.queries, std=0.5)
    nn.init.trunc_normal_(model.vision.pos_embed, std=0.02)
    nn.init.trunc_normal_(model.vision.cls_token, std=0.02)
    return model


def write_start(folder: Path, model: LlamaVid) -> Path:
    """Writes the model beside its tokenizers, as a release lies; gives the checkpoint's folder.

    `eva_vit_g.pth` and `image_processor/` go to `folder`, all other weights to `checkpoint/`.
    """
    checkpoint = folder / "checkpoint"
    write_preprocessing(TINY.preprocessing, folder / "image_processor")
    torch.save(model.vision.state_dict(), folder / "eva_vit_g.pth")
    weights = ((name, weight) for name, weight in model.named_parameters() if not name.startswith("vision."))
    save_release(
        checkpoint,
        weights,
        settings=_settings(),
        copied_from=checkpoint,
        projector_depth=TINY.projector_depth,
        dtype=torch.float32,
    )
    return checkpoint


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)


def _settings() -> dict[str, object]:
    language = TINY.language
    return {
        "model_type": "llava",
        "bert_type": "qformer_pretrain",
        "compress_type": "mean",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "./eva_vit_g.pth",
        "image_processor": "./image_processor",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": TINY.vision.width,
        "num_query": TINY.text_decoder.queries,
        "hidden_size": language.hidden,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "intermediate_size": language.mlp_width,
        "vocab_size": language.vocab_size,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": language.context_length,
        "max_token": language.context_length,
        "bos_token_id": language.bos_id,
        "eos_token_id": language.eos_id,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
