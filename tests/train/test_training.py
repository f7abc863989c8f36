"""Training: what is learned, what stays, and that an interrupted or shared run is the same run."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llamavid.errors import LlamaVidError, SourceError, UsageError
from llamavid.model import load_model
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid
from llamavid.prompt import Turn, conversation
from llamavid.train.batches import batches
from llamavid.train.examples import IGNORED, Example, Media, Sample, example, read_samples
from llamavid.train.features import FrameFeatures
from llamavid.train.forward import Item, Loss
from llamavid.train.loop import Progress, Settings, learning_rate, train
from llamavid.train.run import run_from
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
    curve = run(small(stage, epochs=4.0, max_tokens=2048), data, tmp_path / "out")
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


def test_a_run_that_was_killed_between_two_renames_has_a_state(data: Path, tmp_path: Path) -> None:
    run(small(STAGE1, epochs=2.0), data, tmp_path / "out", save_every=3)
    for left in ("state.old", "state.partial"):
        (tmp_path / "out" / "state").rename(tmp_path / "out" / left)
        assert run(small(STAGE1, epochs=2.0), data, tmp_path / "out", save_every=3)[0].step == 4
        (tmp_path / "out" / left).rename(tmp_path / "out" / "state")


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


def plain_rows(model: LlamaVid, item: Item) -> Tensor:
    """A frame and a prompt at a time, as the model is written: [rows, D], prompt after prompt."""
    assert item.features is not None
    rows = []
    for prompt in item.example.prompts:
        ids = torch.from_numpy(model.question_tokenizer.ids(prompt))
        for frame in item.features[:, None]:
            query = model.compressor.text_query(model.text_decoder(frame, ids))
            rows += [model.compressor.context_tokens(frame, query), model.compressor.content_tokens(frame)]
    return torch.cat(rows, dim=1)[0]


@pytest.mark.parametrize("recomputes", [False, True])
def test_frames_that_share_their_work_give_the_rows_and_gradients_of_each_alone(recomputes: bool) -> None:
    model = load_model_of("short-video").double()
    two, three = (Turn("how many?", "two"), Turn("what color is this?", "red")), (Turn("a bike?", "no"),)
    items = [
        Item(made(model, *turns), torch.randn(frames, rows, model.config.vision.width).double())
        for turns, frames, rows in ((two, 3, 257), (two + three, 2, 257), (two, 1, 257), (two, 2, 256))
    ]
    parts = (model.text_decoder, model.compressor)
    weights = [weight.requires_grad_() for part in parts for weight in part.parameters()]
    together = Loss(model, gradient_checkpointing=recomputes)._frame_rows(items)
    alone = [plain_rows(model, item) for item in items]
    assert largest_difference(together, alone) < 1e-9
    chance = [torch.randn_like(rows) for rows in alone]
    shared, single = (
        torch.autograd.grad(rows, weights, chance, allow_unused=True) for rows in (together, alone)
    )
    assert largest_difference(shared, single) < 1e-9


def largest_difference(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Relative to the largest value of each tensor."""
    assert [one is None for one in found] == [one is None for one in expected]
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    return max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-3)) for a, b in pairs)


def test_activations_computed_twice_give_the_same_loss_and_gradients() -> None:
    found = []
    for recomputes in (False, True):
        model = load_model_of("short-video").train()
        for name, weight in model.named_parameters():
            weight.requires_grad_(STAGE2.learns(name))
        frames = torch.randn(2, 257, model.config.vision.width, generator=torch.Generator().manual_seed(0))
        item = Item(made(model, Turn("how many?", "two"), Turn("what color?", "red")), frames)
        loss = Loss(model, gradient_checkpointing=recomputes)([item])
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    assert largest_difference(*found) < 1e-6


def test_a_batch_of_text_leaves_a_gradient_for_every_weight_that_learns() -> None:
    """Without one, processes that share the batch wait for each other for ever."""
    model = load_model_of("short-video")
    STAGE2.freeze(model)
    one = example(
        Sample("0", Media.TEXT, None, (Turn("how many?", "two"),)),
        Dialogue.VICUNA,
        model.language_tokenizer,
        max_tokens=999,
        tokens_per_frame=2,
        chance=random.Random(0),
    )
    asked = conversation("how many?", template="imgsp_v1")
    plain = "".join(part for part in asked if isinstance(part, str)).replace(": \n", ": ")
    assert model.language_tokenizer.text(one.ids.tolist()) == f"{plain} two"
    Loss(model)([Item(one, None)]).backward()
    missing = [
        name for name, weight in model.named_parameters() if STAGE2.learns(name) and weight.grad is None
    ]
    assert not missing
    assert float(model.compressor.key_projector.weight.grad.abs().max()) == 0


def test_bf16_stays_close_to_fp32_and_its_weights_are_float32(data: Path, tmp_path: Path) -> None:
    stage = small(STAGE2, epochs=2.0)
    exact = run(stage, data, tmp_path / "fp32", precision="fp32")
    half = run(stage, data, tmp_path / "bf16", precision="bf16")
    found, expected = ([progress.loss for progress in curve] for curve in (half, exact))
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.03)  # 8 bits of mantissa through 4 blocks
    assert all(weight.dtype == torch.float32 for weight in outcome(tmp_path / "bf16").values())
    record = json.loads((tmp_path / "bf16" / "training.json").read_text())
    assert (record["precision"], record["run"]["precision"]) == ("bf16", "bf16")
    assert record["seed"] == 0
    assert "torch" in record["versions"]
    with pytest.raises(UsageError, match="precision 'fp8' does not exist; expected auto, fp32, bf16"):
        run(stage, data, tmp_path / "fp8", precision="fp8")


@pytest.mark.parametrize(("max_tokens", "factor"), [(5000, 2.0), (16384, 4.0), (4096, 1.0)])
def test_stage_3_extends_the_context_once(max_tokens: int, factor: float, data: Path, tmp_path: Path) -> None:
    stage = small(STAGE3, max_tokens=max_tokens, epochs=0.5)
    run(stage, data, tmp_path / "once")
    once = open_checkpoint(tmp_path / "once" / "checkpoint")
    assert once.config.language.rope_factor == factor
    assert once.config.language.context_length == max_tokens
    settings = json.loads((once.folder / "config.json").read_text())
    assert settings["max_position_embeddings"] == 4096
    if factor > 1:
        assert settings["rope_scaling"] == {"type": "linear", "factor": factor}
    model = load_model(once.folder)
    cos, _ = model.language.model.rotary_emb(torch.zeros(1), torch.tensor([[0, 7]]))
    plain, _ = load_model_of("short-video").language.model.rotary_emb(
        torch.zeros(1), torch.tensor([[0, 7 / factor]])
    )
    torch.testing.assert_close(cos, plain)
    train(
        small(STAGE3, max_tokens=32768, epochs=0.5, follows="stage3"),
        once,
        [data],
        Settings(tmp_path / "twice"),
        features=features,
    )
    twice = open_checkpoint(tmp_path / "twice" / "checkpoint")
    assert twice.config.language.rope_factor == 8
    assert twice.config.language.context_length == 32768


def test_stages_1_and_2_keep_the_context(data: Path, tmp_path: Path) -> None:
    run(small(STAGE1, max_tokens=9999, epochs=0.5), data, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out" / "checkpoint").config.language.context_length == 4096


def made(model: LlamaVid, *turns: Turn) -> Example:
    sample = Sample("0", Media.VIDEO, Path("clip"), turns)
    return example(
        sample,
        Dialogue.VICUNA,
        model.language_tokenizer,
        max_tokens=999,
        tokens_per_frame=2,
        chance=random.Random(1),
    )


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
        sample,
        Dialogue.PLAIN_GUIDED,
        model.language_tokenizer,
        max_tokens=99,
        tokens_per_frame=2,
        chance=random.Random(0),
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


def test_a_clip_that_cannot_be_decoded_is_left_out_and_named(data: Path, tmp_path: Path) -> None:
    def spoiled(model: LlamaVid, sample: Sample) -> Tensor:
        if sample.name in ("2", "5"):
            raise SourceError(f"{sample.path} is no video")
        return features(model, sample)

    stage = small(STAGE2, epochs=2.0)
    settings = Settings(tmp_path / "out", micro_batch=1, broken_limit=0.25)
    curve: list[Progress] = []
    start = golden_checkpoint("short-video")
    train(stage, start, [data], settings, features=spoiled, on_step=curve.append)
    assert len(curve) == 4
    report = json.loads((tmp_path / "out" / "broken.json").read_text())
    assert sorted(one["name"] for one in report) == ["2", "5"]
    assert "is no video" in report[0]["reason"]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["broken_samples"] == 2
    with pytest.raises(
        UsageError, match=r"2 of 8 samples are broken, such as '.': .* is no video; expected at most 12%"
    ):
        train(stage, start, [data], Settings(tmp_path / "two", broken_limit=0.125), features=spoiled)


def test_frames_that_do_not_fit_are_a_broken_sample(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its sequence has \d+ tokens, more than 200"):
        train(
            small(STAGE2, max_tokens=200),
            golden_checkpoint("short-video"),
            [data],
            Settings(tmp_path / "out"),
            features=lambda model, sample: torch.randn(99, 257, model.config.vision.width),
        )


def train_until_full(stage: Stage, data: Path, settings: Settings, *, step: int) -> None:
    """A limit on the size of a file, from `step` on, fails like a full disk: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        train(stage, golden_checkpoint("short-video"), [data], settings, features=features, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_last_state_stays(data: Path, tmp_path: Path) -> None:
    stage, settings = small(STAGE1, epochs=3.0), Settings(tmp_path / "out", micro_batch=4, save_every=2)
    with pytest.raises(LlamaVidError, match=r"state.partial cannot be written") as failure:
        train_until_full(stage, data, settings, step=3)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "out" / "state.partial").exists()
    assert json.loads((tmp_path / "out" / "state" / "run.json").read_text())["done"] == 2
    assert run(stage, data, tmp_path / "out", micro_batch=4)[0].step == 3


def test_a_disk_that_fills_with_features_keeps_no_half_of_a_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"its pixels are handed in")
    read = FrameFeatures(tmp_path / "cache", lambda path: np.zeros((3, 3, 224, 224), np.float32))
    sample, model = Sample("0", Media.PICTURE, picture, ()), load_model_of("short-video")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(LlamaVidError, match=r"cache/.*\.safetensors cannot be written"):
            read(model, sample)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").iterdir())
    assert read(model, sample) is not None


def test_a_disk_that_fills_with_the_outcome_leaves_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamaVidError, match="out/checkpoint cannot be written"):
        train_until_full(small(STAGE1), data, Settings(tmp_path / "out"), step=2)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_run_does_not_continue_another_stage_s(data: Path, tmp_path: Path) -> None:
    run(small(STAGE1, epochs=2.0), data, tmp_path / "out", save_every=2)
    with pytest.raises(UsageError, match="holds a run with stage 'stage1'"):
        run(small(STAGE2, epochs=2.0), data, tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"batch_size": "many"}, "batch_size is 'many'; expected int"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"dialogue": "chat"}, "dialogue 'chat' does not exist"),
        ({"batchsize": 3}, "a run has no setting 'batchsize'"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run_from("stage2", None, {"checkpoint": "c", "data": "d", "output": "o", **overrides})


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
