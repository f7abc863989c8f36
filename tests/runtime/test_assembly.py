"""A sequence is text embeddings with frame tokens in its slots, whichever code gathers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.errors import UsageError
from llamavid.runtime.assembly import FrameTokens, assemble
from llamavid.tokenizer import SLOT_ID
from tests.runtime.test_pixels import IMPLEMENTATIONS, needs_native

S = SLOT_ID

# A row's values tell where it is from: 1.. the table, 10.. context tokens, 20.. content tokens.
TABLE = np.repeat(np.float32([[1], [2], [3]]), 2, axis=1)
CONTEXT = np.repeat(np.float32([[[10]], [[11]]]), 2, axis=2)
CONTENT = np.repeat(np.float32([[[20], [21]], [[22], [23]]]), 2, axis=2)


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs with either code."""
    monkeypatch.setenv("LLAMAVID_PIXELS", request.param)


def gathered(ids: list[int], slots: list[range] | None = None) -> list[int]:
    """The sequence of the arrays above, a number for each row."""
    sequence = assemble(
        np.array(ids, np.int64), TABLE, FrameTokens(CONTEXT, CONTENT), dtype=np.float32, slots=slots
    )
    assert sequence.shape[0] == 1
    np.testing.assert_array_equal(sequence[0, :, 0], sequence[0, :, 1])
    return [int(value) for value in sequence[0, :, 0]]


def test_one_slot_takes_the_tokens_of_all_frames() -> None:
    assert gathered([0, S, 2, 1]) == [1, 10, 20, 21, 11, 22, 23, 3, 2]


def test_a_long_video_prompt_has_a_slot_for_each_token() -> None:
    assert gathered([0, S, S, S, 1, S, S, S]) == [1, 10, 20, 21, 2, 11, 22, 23]


def test_a_window_gives_each_slot_its_range() -> None:
    assert gathered([S, 0, S, S], [range(3, 6), range(1, 4), range(6, 6)]) == [11, 22, 23, 1, 20, 21, 11]


def test_new_frames_alone_make_a_sequence_to_go_on_with() -> None:
    assert gathered([S], [range(3, 6)]) == [11, 22, 23]


def test_text_alone_is_a_sequence() -> None:
    assert gathered([2, 0], []) == [3, 1]


def test_a_mapped_table_is_read_where_it_lies(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", TABLE.astype(np.float16))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    sequence = assemble(np.array([2, S]), table, FrameTokens(CONTEXT[:1], CONTENT[:1]), dtype=np.float32)
    assert [*sequence[0, :, 0]] == [3, 10, 20, 21]


def test_arrays_that_are_views_are_taken_as_they_look() -> None:
    content = np.concatenate([CONTENT, CONTENT], axis=1)[:, ::2]
    sequence = assemble(np.array([S]), TABLE, FrameTokens(CONTEXT, content), dtype=np.float32)
    assert [*sequence[0, :, 0]] == [10, 20, 20, 11, 22, 22]


@pytest.mark.parametrize("id", [-1, 3, 2**40])
def test_an_id_outside_the_table_is_named(id: int) -> None:
    with pytest.raises(UsageError, match=f"token id {id}"):
        gathered([id, S])


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        ([S, S], None),
        ([0], None),
        ([S], []),
        ([S], [range(5, 7)]),
        ([S], [range(-1, 2)]),
        ([S], [range(0, 6, 2)]),
    ],
)
def test_slots_that_do_not_fit_the_rows_are_named(ids: list[int], slots: list[range] | None) -> None:
    with pytest.raises(UsageError, match="rows"):
        gathered(ids, slots)


ANY_FLOAT = st.sampled_from([np.float16, np.float32])


@needs_native
@settings(max_examples=150, deadline=None)
@given(data=st.data(), frames=st.integers(0, 4), content_tokens=st.integers(0, 3), width=st.integers(1, 70))
def test_both_give_the_same_bits(data: Any, frames: int, content_tokens: int, width: int) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def rows(*shape: int) -> np.ndarray:
        """Values of every size, those that no half holds among them."""
        sizes = 10.0 ** random.uniform(-9, 6, (*shape, width))
        values = random.choice([-1, 1], sizes.shape) * sizes
        with np.errstate(over="ignore"):
            return values.astype(data.draw(ANY_FLOAT))

    table, context, content = rows(5), rows(frames, 1), rows(frames, content_tokens)
    total = frames * (1 + content_tokens)
    ids, slots = data.draw(st.lists(st.integers(0, 4), max_size=4)), []
    for _ in range(data.draw(st.integers(0, 4))):
        first = data.draw(st.integers(0, total))
        slots.append(range(first, data.draw(st.integers(first, total))))
        ids.insert(data.draw(st.integers(0, len(ids))), S)
    dtype = data.draw(ANY_FLOAT)
    sequences = []
    with pytest.MonkeyPatch.context() as patch, np.errstate(over="ignore"):
        for choice in ("numpy", "native"):
            patch.setenv("LLAMAVID_PIXELS", choice)
            sequence = assemble(
                np.array(ids, np.int64), table, FrameTokens(context, content), dtype=dtype, slots=slots
            )
            sequences.append(sequence)
    np.testing.assert_array_equal(sequences[0].view(np.uint8), sequences[1].view(np.uint8))


def test_every_half_keeps_its_value() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)[None]
    empty = np.empty((0, 1, 2**16), np.float16)
    sequence = assemble(np.array([0]), halves, FrameTokens(empty, empty), dtype=np.float32, slots=[])
    np.testing.assert_array_equal(sequence[0], halves.astype(np.float32))
    back = assemble(np.array([0]), sequence[0], FrameTokens(empty, empty), dtype=np.float16, slots=[])
    np.testing.assert_array_equal(back[0], halves)
