"""The loss of a batch: frame tokens for every prompt, padded sequences, cross-entropy of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from llamavid.model.llamavid import LlamaVid
from llamavid.tokenizer import SLOT_ID
from llamavid.train.examples import IGNORED, Example


@dataclass(frozen=True)
class Item:
    """An example and what its media shows: features [T, R, C], none for text."""

    example: Example
    features: Tensor | None

    def rows(self, tokens_per_frame: int) -> int:
        """Frame tokens of all prompts together."""
        frames = 0 if self.features is None else len(self.features)
        return len(self.example.prompts) * frames * tokens_per_frame


class Loss(nn.Module):
    """`Loss(model)(items)` -> cross-entropy summed over the items' learned tokens, float32.

    A sum, so that any split of a batch over steps and processes adds up to the same.
    """

    def __init__(self, model: LlamaVid, *, gradient_checkpointing: bool = False) -> None:
        """`gradient_checkpointing` computes activations again in the backward pass, to keep fewer."""
        super().__init__()
        self.model = model
        self._recomputes = gradient_checkpointing
        if gradient_checkpointing:
            language = model.language  # transformers 5 gives it another name
            enable = getattr(
                language, "activation_checkpointing_enable", language.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})

    def forward(self, items: Sequence[Item]) -> Tensor:
        embeds, targets, lengths = self.sequences(items)
        mask = torch.arange(embeds.shape[1])[None] < lengths[:, None]
        hidden = self.model.language.model(
            inputs_embeds=embeds, attention_mask=mask.to(embeds.device), use_cache=False
        )[0]
        wanted = targets[:, 1:].to(embeds.device)
        learned = wanted != IGNORED  # the head runs where something is learned, and nowhere else
        logits = self.model.language.lm_head(hidden[:, :-1][learned])
        loss = nn.functional.cross_entropy(logits.float(), wanted[learned], reduction="sum")
        return loss if any(item.features is not None for item in items) else loss + self._nothing()

    def sequences(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
        """What the language model reads: embeddings [B, L, D], labels int64 [B, L], lengths [B]; padded."""
        rows = self._frame_rows(items)
        ids, targets, lengths = _padded([item.example for item in items], [len(found) for found in rows])
        return self._embeds(ids, rows), targets, lengths

    def _embeds(self, ids: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """[B, L, D]; `rows` take the places of the slots, in order."""
        table = self.model.language.model.embed_tokens
        slots = ids == SLOT_ID
        device = table.weight.device
        embeds: Tensor = table(ids.masked_fill(slots, 0).to(device))
        if not slots.any():
            return embeds
        return embeds.index_put((slots.to(device),), torch.cat(list(rows)).to(embeds.dtype))

    def _nothing(self) -> Tensor:
        """0, with a gradient of 0 for all that a batch of text leaves alone: other processes wait for it."""
        parts = (self.model.text_decoder, self.model.compressor)
        sums = [p.sum() for part in parts for p in part.parameters() if p.requires_grad]
        return 0.0 * sum(sums, torch.zeros((), device=self.model.compressor.key_projector.weight.device))

    def _frame_rows(self, items: Sequence[Item]) -> list[Tensor]:
        """For each item its frame tokens [rows, D], prompt after prompt, frame after frame.

        Items with as many prompts (and rows a frame) go together, so that a frame's keys and values are
        computed once for all of its prompts.
        """
        none = self.model.language.model.embed_tokens.weight.new_empty(0, self.model.config.language.hidden)
        rows = [none for _ in items]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(items):
            if item.features is not None:
                groups.setdefault((len(item.example.prompts), item.features.shape[1]), []).append(index)
        for members in groups.values():
            for index, found in zip(members, self._group_rows([items[i] for i in members]), strict=True):
                rows[index] = found
        return rows

    def _group_rows(self, items: Sequence[Item]) -> list[Tensor]:
        """For each item its frame tokens [P * T * (1+n), D]; all have P prompts."""
        weight = self.model.compressor.key_projector.weight
        stored = [item.features for item in items if item.features is not None]
        frames = [len(features) for features in stored]
        features = torch.cat([one.to(weight.device).to(weight.dtype) for one in stored])  # float16 travels
        query = self._text_query(items, frames, features)
        context = self.model.compressor.context_tokens(features, query).unflatten(0, (len(features), -1))
        content = self.model.compressor.content_tokens(features)[:, None].expand(-1, context.shape[1], -1, -1)
        tokens = torch.cat([context, content], dim=2).transpose(0, 1)  # [P, all frames, 1+n, D]
        return [part.flatten(0, 2) for part in tokens.split(frames, dim=1)]

    def _text_query(self, items: Sequence[Item], frames: Sequence[int], features: Tensor) -> Tensor:
        """Every frame with each of its item's P prompts, frame after frame: [F * P, M, C]."""
        tokenize = self.model.question_tokenizer.ids
        questions = [
            torch.from_numpy(tokenize(prompt)[0]) for item in items for prompt in item.example.prompts
        ]
        ids = pad_sequence(questions, batch_first=True)
        lengths = torch.tensor([len(question) for question in questions])
        words = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        of_items = torch.arange(len(questions)).unflatten(0, (len(items), -1))
        asked = of_items.repeat_interleave(torch.tensor(frames), dim=0).flatten()
        read = [features, *(rows.to(features.device) for rows in (ids, words, asked))]
        decoder = self.model.text_decoder
        hidden = checkpoint(decoder, *read, use_reentrant=False) if self._recomputes else decoder(*read)
        return self.model.compressor.text_query(hidden)


def _padded(examples: Sequence[Example], rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and labels int64 [B, L] with `SLOT_ID` in every place of a frame token, and lengths [B]."""
    ids, labels = [], []
    for example, count in zip(examples, rows, strict=True):
        one = torch.from_numpy(example.ids)
        slots = one == SLOT_ID
        each = count // max(1, int(slots.sum()))
        assert each * int(slots.sum()) == count
        repeats = torch.where(slots, each, 1)
        ids.append(one.repeat_interleave(repeats))
        labels.append(torch.from_numpy(example.labels).repeat_interleave(repeats))
    lengths = torch.tensor([len(one) for one in ids])
    padded = (
        pad_sequence(ids, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    )
    return *padded, lengths
