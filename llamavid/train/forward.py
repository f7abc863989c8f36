"""The loss of a batch: frame tokens for every prompt, padded sequences, cross-entropy of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llamavid.model.compressor import frame_tokens
from llamavid.model.llamavid import LlamaVid
from llamavid.tokenizer import SLOT_ID
from llamavid.train.examples import IGNORED, Example


@dataclass(frozen=True)
class Item:
    """An example and what its media shows: features [T, R, C], none for text."""

    example: Example
    features: Tensor | None


class Loss(nn.Module):
    """`Loss(model)(items)` -> cross-entropy summed over the items' learned tokens.

    A sum, so that any split of a batch over steps and processes adds up to the same.
    """

    def __init__(self, model: LlamaVid) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Sequence[Item]) -> Tensor:
        rows = iter(self._frame_rows(items))
        sequences, labels = [], []
        for item in items:
            sequence, label = self._sequence(item.example, [next(rows) for _ in item.example.prompts])
            sequences.append(sequence)
            labels.append(label)
        embeds = pad_sequence(sequences, batch_first=True)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=embeds.device)
        mask = torch.arange(embeds.shape[1], device=embeds.device)[None] < lengths[:, None]
        hidden = self.model.language.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)[0]
        learned = targets[:, 1:] != IGNORED  # the head runs where something is learned, and nowhere else
        logits = self.model.language.lm_head(hidden[:, :-1][learned])
        return nn.functional.cross_entropy(logits.float(), targets[:, 1:][learned], reduction="sum")

    def _frame_rows(self, items: Sequence[Item]) -> list[Tensor]:
        """For each prompt of each item, its frames' tokens [T * (1+n), D]: one pass over all of them."""
        pairs = [
            (item.features, prompt)
            for item in items
            if item.features is not None
            for prompt in item.example.prompts
        ]
        if not pairs:
            return []
        device = self.model.compressor.key_projector.weight.device
        questions = [self.model.question_tokenizer.ids(prompt)[0] for _, prompt in pairs]
        counts = [len(features) for features, _ in pairs]
        repeats = torch.tensor(counts, device=device)
        ids = pad_sequence([torch.from_numpy(question) for question in questions], batch_first=True)
        words = (
            torch.arange(ids.shape[1])[None]
            < torch.tensor([len(question) for question in questions])[:, None]
        )
        features = torch.cat([features for features, _ in pairs]).to(
            self.model.compressor.key_projector.weight
        )
        paired_ids = ids.to(device).repeat_interleave(repeats, dim=0)
        paired_mask = words.to(device).long().repeat_interleave(repeats, dim=0)
        query = self.model.compressor.text_query(self.model.text_decoder(features, paired_ids, paired_mask))
        tokens = frame_tokens(
            self.model.compressor.context_tokens(features, query),
            self.model.compressor.content_tokens(features),
        )
        return [part.flatten(0, 1) for part in tokens.split(counts)]

    def _sequence(self, example: Example, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings [L, D] and labels [L]; `rows` take the places of the slots and are not learned."""
        table = self.model.language.model.embed_tokens
        ids = torch.from_numpy(example.ids).to(table.weight.device)
        labels = torch.from_numpy(example.labels).to(table.weight.device)
        slots = (ids == SLOT_ID).nonzero().flatten().tolist()
        assert len(slots) == len(rows)
        embeds, targets, text = [], [], 0
        for slot, inserted in zip(slots, rows, strict=True):
            embeds += [table(ids[text:slot]), inserted]
            targets += [labels[text:slot], labels.new_full((len(inserted),), IGNORED)]
            text = slot + 1
        return torch.cat([*embeds, table(ids[text:])]), torch.cat([*targets, labels[text:]])
