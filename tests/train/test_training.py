"""Training: what is learned, what stays, and that an interrupted or shared run is the same run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llamavid.errors import LlamaVidError, UsageError
from llamavid.model import load_model
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid
from llamavid.prompt import Turn, conversation
from llamavid.train.batches import batches
from llamavid.train.examples import IGNORED, Example, Media, Sample, example, read_samples
from llamavid.train.forward import Item, Loss
from llamavid.train.loop import Progress, Settings, learning_rate, train
from llamavid.train.stages import STAGE1, STAGE2, STAGE3, STAGES, Dialogue, Stage, with_overrides
from tests.conftest import golden_checkpoint, recording

ITEMS = 8
TELLING = {  # a weight of each kind
    "text_decoder.queries",
    "text_decoder.layers.0.attention.query.weight",
    "compressor.query_projector.weight",
    "compressor.value_projector.weight",
    "compressor.content_projector.0.weight",
    "language.model.layers.0.mlp.up_proj.weight",
    "language.lm_head.weight",
}
COLORS = ("red", "blue", "green")


def item(index: int, **changes: object) -> dict[str, object]:
    said = [
        {"from": "human", "value": f"<image>\nwhat color is {index}?"},
        {"from": "gpt", "value": COLORS[index % len(COLORS)]},
    ]
    return {"id": str(index), "image": "picture.png", "conversations": said, **changes}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "picture.png").write_bytes(b"its features are handed in")
    (tmp_path / "data.json").write_text(json.dumps([item(index) for index in range(ITEMS)]))
    return tmp_path / "data.json"


def features(model: LlamaVid, sample: Sample) -> Tensor:
    generator = torch.Generator().manual_seed(int(sample.name))
    return torch.randn(2, 257, model.config.vision.width, generator=generator)


def small(stage: Stage, **changes: object) -> Stage:
    return with_overrides(stage, {"batch_size": 4, "learning_rate": 1e-3, "follows": None, **changes})


def run(stage: Stage, data: Path, output: Path, **settings: object) -> list[Progress]:
    curve: list[Progress] = []
    made = Settings(output, **{"micro_batch": 3, **settings})  # type: ignore[arg-type]
    train(stage, golden_checkpoint("short-video"), [data], made, features=features, on_step=curve.append)
    return curve


def outcome(output: Path) -> dict[str, Tensor]:
    return torch.load(output / "checkpoint" / "pytorch_model-00001-of-00001.bin", weights_only=True)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_learns_what_it_should_and_leaves_the_rest_to_the_bit(
    stage: Stage, data: Path, tmp_path: Path
) -> None:
    curve = run(small(stage, epochs=4.0), data, tmp_path / "out")
    assert curve[-1].loss < 0.8 * curve[0].loss
    before, after = load_model_of("short-video"), load_model(tmp_path / "out" / "checkpoint")
    assert after.config == before.config
    new = dict(after.named_parameters())
    moved = {name for name, old in before.named_parameters() if not torch.equal(old, new[name])}
    assert all(stage.learns(name) for name in moved)
    assert {name for name in TELLING if stage.learns(name)} == moved & TELLING


def load_model_of(family: str) -> LlamaVid:
    from llamavid.model.llamavid import model_from_checkpoint

    return model_from_checkpoint(golden_checkpoint(family))


def test_the_paper_s_settings_are_the_defaults() -> None:
    assert [(s.batch_size, s.learning_rate, s.max_tokens) for s in (STAGE1, STAGE2, STAGE3)] == [
        (256, 1e-3, 2048),
        (128, 2e-5, 2048),
        (8, 2e-5, 65536),
    ]
    assert not any(stage.learns("vision.blocks.0.mlp.fc1.weight") for stage in STAGES.values())
    assert STAGE3.learns("language.lm_head.weight")
    assert not STAGE3.learns("text_decoder.layers.0.attention.key.weight")


def test_an_interrupted_run_continues_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    stage = small(STAGE2, epochs=3.0)
    run(stage, data, tmp_path / "whole", save_every=2)

    def interrupt(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    settings = Settings(tmp_path / "cut", micro_batch=3, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(stage, golden_checkpoint("short-video"), [data], settings, features=features, on_step=interrupt)
    assert run(stage, data, tmp_path / "cut", save_every=2)[0].step == 3
    whole, cut = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole" / "loss.csv").read_text() == (tmp_path / "cut" / "loss.csv").read_text()
    assert (tmp_path / "cut" / "loss.png").stat().st_size > 1000


def test_two_processes_give_the_loss_of_one(data: Path, tmp_path: Path) -> None:
    alone = [progress.loss for progress in run(small(STAGE2, epochs=2.0), data, tmp_path / "alone")]
    script = f"""
import sys
from pathlib import Path
from tests.train.test_training import STAGE2, run, small
run(small(STAGE2, epochs=2.0), Path({str(data)!r}), Path({str(tmp_path / "shared")!r}))
"""
    (tmp_path / "shared.py").write_text(script)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    root = Path(__file__).parents[2]
    subprocess.run(
        [
            *launch,
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            tmp_path / "shared.py",
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    lines = (tmp_path / "shared" / "loss.csv").read_text().splitlines()[1:]
    together = [float(line.split(",")[2]) for line in lines]
    np.testing.assert_allclose(together, alone, rtol=2e-5)  # float32 sums in another order


def test_a_batch_s_loss_is_the_sum_of_its_samples_and_of_what_is_predicted() -> None:
    model, recorded = load_model_of("short-video"), recording("short-video", "video_3_frames")
    frames = torch.from_numpy(recorded["vision_features"])
    one = made(model, Turn(recorded.prompts[0], "red bike"))
    two = made(model, Turn("how many?", "two"), Turn("what color is this?", "red"))
    loss = Loss(model)
    with torch.inference_mode():
        together = loss([Item(one, frames), Item(two, frames[:1])])
        alone = loss([Item(one, frames)]) + loss([Item(two, frames[:1])])
        torch.testing.assert_close(together, alone)
        parts = conversation(recorded.prompts[0], template="imgsp_v1")
        rows = model.frame_tokens(frames, recorded.prompts[0]).flatten(0, 1)
        prompt = model.sequence(parts, [rows])
        answer = torch.from_numpy(one.labels[one.labels != IGNORED])
        spoken = model.language.model.embed_tokens(answer[:-1])[None]
        logits = model.language(inputs_embeds=torch.cat([prompt, spoken], 1)).logits[0, -len(answer) :]
        by_hand = -logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
        torch.testing.assert_close(loss([Item(one, frames)]), by_hand)


def made(model: LlamaVid, *turns: Turn) -> Example:
    sample = Sample("0", Media.VIDEO, Path("clip"), turns)
    return example(sample, Dialogue.VICUNA, model.language_tokenizer, max_tokens=999, chance=random.Random(1))


def test_the_question_is_read_as_when_it_is_asked_and_only_the_answer_is_learned() -> None:
    model = load_model_of("short-video")
    asked = model.language_tokenizer.ids(conversation("What color is the bike?"))
    one = made(model, Turn("What color is the bike?", "red"))
    assert (one.ids[: len(asked)] == asked).all()
    assert (one.labels[: len(asked)] == IGNORED).all()
    assert (one.labels[len(asked) :] == one.ids[len(asked) :]).all()
    assert one.ids[-1] == model.language_tokenizer.eos_id


def test_a_plain_sample_is_its_caption_and_its_instruction_guides_the_text_decoder() -> None:
    model = load_model_of("short-video")
    sample = Sample("0", Media.PICTURE, Path("p"), (Turn("Describe this.", "red square"),))
    one = example(
        sample, Dialogue.PLAIN_GUIDED, model.language_tokenizer, max_tokens=99, chance=random.Random(0)
    )
    assert one.prompts == ("Describe this.",)
    assert model.language_tokenizer.text(one.ids[2:].tolist()).strip() == "red square"
    assert (one.labels[:2] == IGNORED).all()
    assert (one.labels[2:] == one.ids[2:]).all()


def test_batches_hold_every_sample_once_and_never_mix_modalities() -> None:
    lengths = [random.Random(0).randint(1, 99) for _ in range(100)]
    groups = ["video" if index % 3 else "text" for index in range(100)]
    planned = batches(lengths, groups, batch_size=8, seed=0, epoch=0)
    assert sorted(index for batch in planned for index in batch) == list(range(100))
    assert all(len({groups[index] for index in batch}) == 1 for batch in planned)
    assert planned == batches(lengths, groups, batch_size=8, seed=0, epoch=0)
    assert planned != batches(lengths, groups, batch_size=8, seed=0, epoch=1)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [learning_rate(STAGE1, step, 100) for step in range(100)]
    assert rates[0] < rates[1] < rates[2] == STAGE1.learning_rate
    assert all(late < early for early, late in pairwise(rates[3:]))
    assert rates[-1] < 0.01 * STAGE1.learning_rate


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "absent.png"}, "absent.png is missing"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "its roles are robot"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "no <image>"),
        ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": ""}]}, "empty"),
        ({"conversations": None}, "no conversations"),
    ],
)
def test_a_broken_sample_is_named_and_too_many_stop_the_run(
    changes: dict[str, object], reason: str, data: Path, tmp_path: Path
) -> None:
    data.write_text(json.dumps([item(0), item(1, **changes)]))
    samples, broken = read_samples(data)
    assert [sample.name for sample in samples] == ["0"]
    assert broken[0].name == "1"
    assert reason in broken[0].reason
    with pytest.raises(UsageError, match="1 of 2 samples are broken, such as '1'"):
        run(small(STAGE1), data, tmp_path / "out")
    assert reason in (tmp_path / "out" / "broken.json").read_text()


def test_an_answer_over_the_limit_is_a_broken_sample(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 20"):
        run(small(STAGE2, max_tokens=20), data, tmp_path / "out")


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_state(
    data: Path, tmp_path: Path
) -> None:
    def spoiled(after: int) -> Callable[[LlamaVid, Sample], Tensor]:
        calls = iter(range(10**6))
        return lambda model, sample: features(model, sample) * (float("nan") if next(calls) >= after else 1)

    stage, settings = small(STAGE1, epochs=2.0), Settings(tmp_path / "out", micro_batch=4, save_every=1)
    with pytest.raises(LlamaVidError, match="loss of step 3 is nan"):
        train(stage, golden_checkpoint("short-video"), [data], settings, features=spoiled(2 * 4))
    assert json.loads((tmp_path / "out" / "state" / "run.json").read_text())["done"] == 2
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_stage_does_not_start_from_another_than_its_predecessor(data: Path, tmp_path: Path) -> None:
    run(small(STAGE1, epochs=1.0), data, tmp_path / "one")
    first = open_checkpoint(tmp_path / "one" / "checkpoint")
    with pytest.raises(UsageError, match="was made by stage1; expected an outcome of stage2"):
        train(STAGE3, first, [data], Settings(tmp_path / "three"), features=features)
