"""The PyTorch reference: what LLaMA-VID computes, stage by stage (facts/model, arXiv 2311.17043).

    pixels --encode_frames--> features --frame_tokens(question)--> tokens --generate--> ids

Everything else in this project is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamavid.config import ModelConfig
from llamavid.errors import PromptError
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.compressor import Compressor, frame_tokens
from llamavid.model.parts import PARTS, language_model, text_decoder
from llamavid.model.sequence import embedded
from llamavid.model.vision import VisionEncoder
from llamavid.prompt import Part, checked_question, conversation, movie
from llamavid.sampling import Sampler, Sampling
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer


class LlamaVid(nn.Module):
    """The whole model. T frames, N patches, C vision width, D language width, n content tokens."""

    def __init__(
        self,
        config: ModelConfig,
        language_tokenizer: LanguageTokenizer,
        question_tokenizer: QuestionTokenizer,
    ) -> None:
        super().__init__()
        self.config = config
        self.language_tokenizer = language_tokenizer
        self.question_tokenizer = question_tokenizer
        self.vision = VisionEncoder(config.vision)
        self.text_decoder = text_decoder(config)
        self.compressor = Compressor(config)
        self.language = language_model(config.language)

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor, *, batch: int = 8) -> Tensor:
        """pixels [T, 3, S, S] -> features [T, 1+N, C], `batch` frames at a time."""
        chunks = pixels.to(self.compressor.key_projector.weight).split(batch)
        return torch.cat([self.vision(chunk) for chunk in chunks])

    @torch.inference_mode()
    def frame_tokens(self, features: Tensor, question: str, *, batch: int = 32) -> Tensor:
        """features [T, 1+N or N, C] and a question -> frame tokens [T, 1+n, D], context before content.

        A question over 256 text-decoder tokens loses its beginning, as in the reference.
        """
        ids = torch.from_numpy(self.question_tokenizer.ids(checked_question(question))).to(features.device)
        chunks = features.to(self.compressor.key_projector.weight).split(batch)
        return torch.cat([self._tokens(chunk, ids) for chunk in chunks])

    def generate(
        self,
        features: Tensor,
        question: str,
        *,
        max_new_tokens: int,
        template: str = "vicuna_v1",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[int]:
        """Answers a question about a video.

        Args:
            features: [T, 1+N, C] from `encode_frames`.
            temperature: 0 is greedy.

        Returns:
            Token ids of the answer, without `</s>`.

        Raises:
            PromptError: the question is empty, or the prompt does not fit the context.
        """
        parts = conversation(question, template=template)
        rows = self.frame_tokens(features, question).flatten(0, 1)
        sampling = Sampling(temperature, top_p, seed)
        return self._answer(self.sequence(parts, [rows]), max_new_tokens, sampling)

    def generate_movie(
        self,
        features: Tensor,
        subtitles: Sequence[str],
        question: str,
        *,
        max_new_tokens: int,
        template: str = "vicuna_v1",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[int]:
        """Answers a question about a movie: stored features and what is said after each frame.

        Args:
            features: [T, N, C], without the class token, often float16.
            subtitles: T strings, empty where nothing is said.

        Returns, Raises: as `generate`.
        """
        if len(subtitles) != len(features):
            raise PromptError(
                f"{len(subtitles)} subtitles", expected=f"one for each of the {len(features)} frames"
            )
        tokens = self.frame_tokens(features, question)
        parts = movie(question, subtitles, tokens_per_frame=tokens.shape[1], template=template)
        sequence = self.sequence(parts, tokens.flatten(0, 1)[:, None])
        return self._answer(sequence, max_new_tokens, Sampling(temperature, top_p, seed))

    @torch.inference_mode()
    def sequence(self, parts: Sequence[Part], rows: Sequence[Tensor] | Tensor) -> Tensor:
        """The prompt as embeddings [1, L, D]; `rows[i]` [r, D] takes the place of slot i."""
        ids, table = torch.from_numpy(self.language_tokenizer.ids(parts)), self.language.model.embed_tokens
        return embedded(ids, rows, lambda text: table(text.to(table.weight.device)))[None]

    @torch.inference_mode()
    def _answer(self, sequence: Tensor, max_new_tokens: int, sampling: Sampling) -> list[int]:
        """Prefill, then one token after another until `</s>`."""
        limit = self.config.language.context_length
        if sequence.shape[1] + max_new_tokens > limit:
            raise PromptError(
                f"the prompt has {sequence.shape[1]} tokens and {max_new_tokens} are to come",
                expected=f"at most {limit} together",
            )
        sampler, cache, answer, step = Sampler(sampling), DynamicCache(), list[int](), sequence
        for _ in range(max_new_tokens):
            output = self.language(
                inputs_embeds=step, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            token = sampler.pick(output.logits[0, -1].float().cpu().numpy().astype(np.float32))
            if token == self.config.language.eos_id:
                break
            answer.append(token)
            step = self.language.model.embed_tokens(torch.tensor([[token]], device=sequence.device))
        return answer

    def _tokens(self, features: Tensor, ids: Tensor) -> Tensor:
        query = self.compressor.text_query(self.text_decoder(features, ids))
        return frame_tokens(
            self.compressor.context_tokens(features, query), self.compressor.content_tokens(features)
        )


def load_model(
    checkpoint: Path | str,
    *,
    vision_tower: Path | str | None = None,
    text_tokenizer: Path | str | None = None,
    image_processor: Path | str | int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LlamaVid:
    """Loads a checkpoint in its release layout; peak memory is about one copy of the weights.

    Args: as `llamavid.model.checkpoint.open_checkpoint`; then the dtype and device of every weight.

    Raises:
        CheckpointError: anything is missing, damaged or not understood.
    """
    opened = open_checkpoint(
        checkpoint, vision_tower=vision_tower, text_tokenizer=text_tokenizer, image_processor=image_processor
    )
    return model_from_checkpoint(opened, dtype=dtype, device=device)


def model_from_checkpoint(
    opened: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LlamaVid:
    """The model of an opened checkpoint."""
    with torch.device("meta"):
        model = LlamaVid(
            opened.config,
            LanguageTokenizer(opened.language_tokenizer),
            QuestionTokenizer(opened.question_vocabulary, max_tokens=opened.config.text_decoder.max_tokens),
        )
    for part in PARTS:
        opened.fill(part, model.get_submodule(part), dtype=dtype, device=device)
    # Its table is computed, not stored, and must be float32 whatever the weights are.
    model.language.model.rotary_emb = LlamaRotaryEmbedding(model.language.config).to(device)
    return model.eval()
