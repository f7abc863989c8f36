"""What runs here is compared with PyTorch at every size, and whatever is wrong with it is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamavid.bundle import Bundle, open_bundle
from llamavid.engines import write_stamp
from llamavid.errors import ParityError
from llamavid.golden import Golden, read_golden
from llamavid.runtime.parity import onnx_subject
from llamavid.runtime.verify import (
    Compared,
    Step,
    Subject,
    arrangements,
    compare,
    engine_subject,
    sizes_of,
)
from tests.engine_sets import A100, engine_set
from tests.test_layout import REPORT_LOADED, python

Array = np.ndarray[Any, Any]
Change = Callable[[str, dict[str, Array]], None]

SIZES = {"vision": (1, 2, 5), "content": (1, 3, 8), "context": (1, 3, 8), "llm": (20, 40)}


@pytest.fixture(scope="module")
def bundle(short_bundle: Path) -> Bundle:
    return open_bundle(short_bundle)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> Golden:
    return read_golden(bundle)


@pytest.fixture(scope="module")
def sound(bundle: Bundle) -> Subject:
    """The bundle's graphs, with the sizes that a set of engines could have."""
    subject = onnx_subject(bundle)
    stages = {name: replace(stage, sizes=SIZES[name]) for name, stage in subject.stages.items()}
    return replace(subject, stages=stages)


def only(subject: Subject, *names: str) -> Subject:
    return replace(subject, stages={name: subject.stages[name] for name in names})


def spoiled(subject: Subject, stage: str, change: Change) -> Subject:
    """A runner whose outputs of one stage are changed in place, by what it was given."""

    def run(name: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        found = {output: array.copy() for output, array in subject.run_frames(name, inputs).items()}
        if name == stage:
            change(name, found)
        return found

    return replace(only(subject, stage), run_frames=run)


def failed(golden: Golden, subject: Subject) -> list[Compared]:
    return [each for each in compare(golden, subject) if not each.row.passed]


# What is right.


def test_a_sound_bundle_passes_at_every_size(golden: Golden, sound: Subject) -> None:
    compared = list(compare(golden, sound))
    assert [each.row for each in compared if not each.row.passed] == []
    assert {(each.stage, each.size) for each in compared} >= {
        (name, size) for name, sizes in SIZES.items() for size in sizes
    }
    for each in compared:
        assert each.row.reason
        assert each.row.tolerance is not None


def test_every_output_is_compared(golden: Golden, sound: Subject) -> None:
    words = " ".join(each.row.against for each in compare(golden, only(sound, "context")))
    for output in ("attention", "relevance", "itself at 1 frame"):
        assert output in words


@pytest.mark.parametrize("which", ["int4_bundle", "long_bundle"])
def test_a_bundle_of_another_precision_or_length_passes(request: pytest.FixtureRequest, which: str) -> None:
    bundle = open_bundle(request.getfixturevalue(which))
    assert failed(read_golden(bundle), onnx_subject(bundle)) == []


def test_a_device_verifies_without_torch_or_onnx(short_bundle: Path) -> None:
    verify = f"main(['verify', {str(short_bundle)!r}, '--json'])"
    code = f"from llamavid.cli import main\ntry: {verify}\nexcept SystemExit as end: assert end.code == 0"
    document, loaded = python("-c", f"{code}\n{REPORT_LOADED}").stdout.splitlines()
    assert json.loads(document)["passed"]
    assert json.loads(loaded) == []


# What is wrong with frames.


def mix_rows(name: str, found: dict[str, Array]) -> None:
    for array in found.values():
        if len(array) >= 5:
            array[4] = array[1]


def scale_the_last_row_a_little(name: str, found: dict[str, Array]) -> None:
    for array in found.values():
        if len(array) == 5:
            array[-1] *= 1.0001


def forget_a_number(name: str, found: dict[str, Array]) -> None:
    array = next(iter(found.values()))
    if len(array) == 2:
        array.reshape(-1)[7] = np.nan


def overflow_float16(name: str, found: dict[str, Array]) -> None:
    """Sums that leave float16 in one channel, as a ViT's do."""
    array = next(iter(found.values()))
    with np.errstate(over="ignore"):
        array[..., 3] = (array[..., 3] * 1e6).astype(np.float16)


def swap_channels(name: str, found: dict[str, Array]) -> None:
    array = next(iter(found.values()))
    array[..., [0, 1]] = array[..., [1, 0]]


FRAME_FAULTS: dict[str, tuple[Change, set[int]]] = {
    "rows mixed in batches of five": (mix_rows, {5}),
    "one row of five a little off": (scale_the_last_row_a_little, {5}),
    "not a number, for two frames": (forget_a_number, {2}),
    "float16 overflow in one channel": (overflow_float16, {1, 2, 5}),
    "two channels swapped": (swap_channels, {1, 2, 5}),
}


@pytest.mark.parametrize("fault", FRAME_FAULTS)
def test_a_wrong_encoder_fails_where_it_is_wrong(golden: Golden, sound: Subject, fault: str) -> None:
    change, sizes = FRAME_FAULTS[fault]
    rows = failed(golden, spoiled(sound, "vision", change))
    assert {each.size for each in rows} == sizes
    assert all(each.row.graph == "vision" for each in rows)


@pytest.mark.parametrize("output", ["context_tokens", "attention", "relevance"])
def test_each_wrong_output_of_a_graph_is_named(golden: Golden, sound: Subject, output: str) -> None:
    def change(name: str, found: dict[str, Array]) -> None:
        found[output] *= 1.001

    against = [each.row.against for each in failed(golden, spoiled(sound, "context", change))]
    assert len(against) == len(SIZES["context"])
    assert all((f"({output})" in words) == (output != "context_tokens") for words in against)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 32])
def test_every_two_rows_of_a_batch_differ_in_one_of_its_runs(size: int) -> None:
    """Three frames fill a batch of 32: were it always alike, a third of all mixed pairs would not show."""
    runs = arrangements(3, size)
    assert len({tuple(row) for row in np.stack(runs, axis=1)}) == size
    assert all(len(rows) == size and rows.max() < 3 for rows in runs)


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [
        ((1, 8, 32), (1, 5, 8, 21, 32)),
        ((1, 1, 1), (1,)),
        ((1, 2, 4), (1, 2, 3, 4)),
        ((4, 4, 16), (4, 5, 11, 16)),
    ],
)
def test_a_profile_is_tried_at_its_ends_its_middle_and_odd_sizes_between(
    profile: tuple[int, int, int], sizes: tuple[int, ...]
) -> None:
    assert sizes_of(*profile) == sizes


# What is wrong with the language model.


def spoiled_language(subject: Subject, change: Callable[[Step, Array], Array]) -> Subject:
    """Its logits [V] after each step are changed."""

    def run(steps: Sequence[Step], capacity: int) -> Array:
        logits = subject.run_language(steps, capacity)
        return np.stack([change(step, row.copy()) for step, row in zip(steps, logits, strict=True)])

    return replace(only(subject, "llm"), run_language=run)


def against(golden: Golden, subject: Subject) -> str:
    return "; ".join(each.row.against for each in failed(golden, subject))


def test_a_wrong_decode_step_is_found(golden: Golden, sound: Subject) -> None:
    def change(step: Step, row: Array) -> Array:
        return row * 1.001 if step.rows.shape[1] == 1 else row

    words = against(golden, spoiled_language(sound, change))
    assert "prefill and decode" in words
    assert "after a rollback" in words


def test_a_cache_that_is_not_rolled_back_is_found(golden: Golden, sound: Subject) -> None:
    """Steps go on where the last one ended, whatever they ask for."""

    def run(steps: Sequence[Step], capacity: int) -> Array:
        length, deaf = 0, []
        for step in steps:
            deaf.append(Step(length, step.rows))
            length += step.rows.shape[1]
        return sound.run_language(deaf, length)

    assert against(golden, replace(only(sound, "llm"), run_language=run)) == (
        "PyTorch float32, after a rollback"
    )


def test_a_long_prefill_that_is_wrong_is_found(golden: Golden, sound: Subject) -> None:
    def change(step: Step, row: Array) -> Array:
        return row * 1.001 if step.rows.shape[1] > 32 else row

    words = against(golden, spoiled_language(sound, change))
    assert words == "itself by 16 tokens, 40 tokens a run"


def test_logits_that_are_no_numbers_fail_every_row_about_them(golden: Golden, sound: Subject) -> None:
    words = against(golden, spoiled_language(sound, lambda step, row: row * np.nan))
    assert len(words.split("; ")) == 3 + len(SIZES["llm"])
    assert "greedy tokens" in words


def test_another_first_token_is_found(golden: Golden, sound: Subject) -> None:
    """In a vocabulary of thousands, two exchanged logits may hardly show in a norm."""

    def exchange(step: Step, row: Array) -> Array:
        best, worst = np.argmax(row), np.argmin(row)
        row[[best, worst]] = row[[worst, best]]
        return row

    assert "greedy tokens" in against(golden, spoiled_language(sound, exchange))


# Engine sets.


def test_an_engine_set_is_tried_at_the_sizes_of_its_profiles(
    short_bundle: Path, tmp_path: Path, sound: Subject
) -> None:
    bundle = open_bundle(shutil.copytree(short_bundle, tmp_path / "bundle"))
    engines = engine_set(bundle)
    subject = engine_subject(engines, sound.run_frames, sound.run_language)
    assert subject.name == "a100"
    assert subject.stages["vision"].sizes == (1, 3, 4, 7, 8)
    assert subject.stages["llm"].graph == "llm.static"
    rows = [each.row for each in compare(read_golden(bundle), subject)]
    assert write_stamp(engines, A100, rows).rows == tuple(rows)


def test_a_wrong_engine_is_not_stamped(
    short_bundle: Path, tmp_path: Path, golden: Golden, sound: Subject
) -> None:
    engines = engine_set(open_bundle(shutil.copytree(short_bundle, tmp_path / "bundle")))
    wrong = spoiled(sound, "vision", swap_channels)
    subject = engine_subject(engines, wrong.run_frames, sound.run_language)
    with pytest.raises(ParityError, match=r"differs from the model in vision \(PyTorch float32, 1 frame\)"):
        write_stamp(engines, A100, [each.row for each in compare(golden, subject)])
