"""The tiny model's language model, pretrained on frames that it imagines.

Vicuna had read half of the internet when it first met a frame. This one has read about the little world:
the same prompts, questions, answers and captions as the three stages use, with the truth about each frame
(`world_state`) in the places where frame tokens go, each through one linear map. No picture is drawn, so it
can read several hundred thousand questions. The maps are thrown away; stage 1 teaches the projectors to
speak as they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from llamavid.model.llamavid import LlamaVid
from llamavid.prompt import Turn
from llamavid.train.examples import IGNORED, Media, Sample, example
from llamavid.train.forward import Item, Loss
from llamavid.train.pretraining import Task
from llamavid.train.stages import Dialogue
from llamavid.train.world_captions import caption, caption_of
from llamavid.train.world_casting import scenes
from llamavid.train.world_questions import DESCRIBE_ALL, DESCRIBE_ONE, Kind, questions
from llamavid.train.world_scene import Scene
from llamavid.train.world_state import CONTENT, CONTEXT, asked, content_states, context_states, tracks

_CAPTIONS = 0.2  # of the samples; half of them about one actor
_HEAP = 16  # batches that are sorted together by length
_MOST_SECONDS = 60  # of clip that a conversation shows, turn by turn
_NOISE = 0.1  # what an encoder reads is never quite 0 or 1
# How often a kind is asked when a scene allows it: what takes longest to learn more often.
_WEIGHTS = {Kind.DIRECTION: 3.0, Kind.ORDER: 3.0, Kind.WHEN: 2.0, Kind.CHANGE: 2.0, Kind.COUNT: 1.5}


class ImaginedLoss(Loss):
    """`Loss` over items whose features are states [prompts, T, CONTEXT + CONTENT]."""

    def __init__(self, model: LlamaVid) -> None:
        super().__init__(model)
        hidden = model.config.language.hidden
        self.context, self.content = nn.Linear(CONTEXT, hidden), nn.Linear(CONTENT, hidden)

    def _frame_rows(self, items: Sequence[Item]) -> list[Tensor]:
        """For each item its frame tokens [prompts * T * 2, D]."""
        states = [item.features.flatten(0, 1) for item in items if item.features is not None]
        every = torch.cat(states).to(self.context.weight.device)
        if self.training:
            every = every + _NOISE * torch.randn_like(every)
        context, content = every.split((CONTEXT, CONTENT), dim=-1)
        rows = torch.stack([self.context(context), self.content(content)], dim=1)
        return [part.flatten(0, 1) for part in rows.split([len(state) for state in states])]

    def is_right(self, item: Item) -> bool:
        """Whether the likeliest next token is the learned one, all through the answer."""
        embeds, targets, _ = self.sequences([item])
        said = self.model.language(inputs_embeds=embeds).logits[0, :-1].argmax(-1).cpu()
        learned = targets[0, 1:] != IGNORED
        return bool((said == targets[0, 1:])[learned].all())


def imagined(scene: Scene, model: LlamaVid, chance: Random) -> Item:
    """A caption, or a conversation of one to three questions, and the states of its frames."""
    if chance.random() < _CAPTIONS:
        return _item(scene, (_caption(scene, chance),), Dialogue.PLAIN_GUIDED, model, chance)
    return _item(scene, _conversation(scene, chance), Dialogue.VICUNA, model, chance)


def _item(scene: Scene, turns: tuple[Turn, ...], dialogue: Dialogue, model: LlamaVid, chance: Random) -> Item:
    read = example(
        Sample(scene.name, Media.VIDEO, Path(), turns),
        dialogue,
        model.language_tokenizer,
        max_tokens=model.config.language.context_length,
        tokens_per_frame=model.config.tokens_per_frame,
        chance=chance,
    )
    return Item(read, _states(scene, [turn.question for turn in turns]))


def _caption(scene: Scene, chance: Random) -> Turn:
    if chance.random() < 0.5:
        return Turn(DESCRIBE_ALL[0].format(place="video"), caption(scene))
    actor = chance.choice(scene.actors)
    return Turn(chance.choice(DESCRIBE_ONE).format(actor.shape), caption_of(actor))


def _conversation(scene: Scene, chance: Random) -> tuple[Turn, ...]:
    known = questions(scene)
    wanted = min(chance.choice((1, 1, 2, 3)), max(1, _MOST_SECONDS // max(1, scene.seconds)))
    picked: dict[str, Turn] = {}
    for question in chance.choices(known, [_WEIGHTS.get(one.kind, 1.0) for one in known], k=wanted):
        picked[question.text] = Turn(question.text, question.answer)
    return tuple(picked.values())


def _states(scene: Scene, prompts: Sequence[str]) -> Tensor:
    """[prompts, T, CONTEXT + CONTENT] of the frames at 0, 1, 2, ... seconds."""
    moments = max(1, scene.seconds)
    found = tracks(scene, range(moments))
    content = content_states(found, moments)
    contexts = [context_states(found, moments, asked(prompt)) for prompt in prompts]
    return torch.from_numpy(np.stack([np.concatenate([context, content], axis=1) for context in contexts]))


def batches_of_items(model: LlamaVid, *, seed: int, batch_size: int) -> Iterator[list[Item]]:
    """Without end, no scene twice; items of like length together. One scene in ten is a still picture."""
    chance = Random(f"imagined {seed}")
    clips = scenes("train", seed, 10**9, drawable=False)
    stills = scenes("train", seed, 10**9, form="still", drawable=False)
    while True:
        drawn = (next(stills if chance.random() < 0.1 else clips) for _ in range(_HEAP * batch_size))
        items = sorted((imagined(scene, model, chance) for scene in drawn), key=_length)
        heap = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        chance.shuffle(heap)
        yield from heap


def _length(item: Item) -> int:
    assert item.features is not None
    return len(item.example.ids) + 2 * item.features.shape[0] * item.features.shape[1]


def language_task(model: LlamaVid, *, batch_size: int = 64) -> Task[list[Item]]:
    """Teaches `model.language`, and the two maps."""
    loss = ImaginedLoss(model).to(model.compressor.key_projector.weight.device).train()

    def mean(items: list[Item]) -> Tensor:
        summed: Tensor = loss(items)
        return summed / sum(item.example.learned_tokens for item in items)

    def read(seed: int) -> Iterator[list[Item]]:
        return batches_of_items(model, seed=seed, batch_size=batch_size)

    learner = nn.ModuleList([model.language, loss.context, loss.content])
    return Task(learner, read, mean, lambda clips: accuracy(model, loss, clips=clips))


@torch.inference_mode()
def accuracy(model: LlamaVid, loss: ImaginedLoss, *, clips: int) -> dict[str, float]:
    """Of the held-out questions of each kind, and of all, how many get their answer, word for word."""
    loss.eval()
    found: dict[str, list[bool]] = {"all": []}
    for scene in scenes("heldout", 0, clips, drawable=False):
        for question in questions(scene):
            turn = Turn(question.text, question.answer)
            right = loss.is_right(_item(scene, (turn,), Dialogue.VICUNA, model, Random(0)))
            found["all"].append(right)
            found.setdefault(question.kind.value, []).append(right)
    return {kind: sum(some) / len(some) for kind, some in found.items()}
