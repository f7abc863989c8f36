"""What was seen, kept within bounds for the questions to come: features and content tokens, frame by frame.

    with FeatureMemory(256 << 20) as memory:
        memory.append(features, content, frame_indices=[0, 25], pts_seconds=[0.0, 1.0])   # as encoded
        for features, content in memory.batches(32):                                      # once a question
            ...

Takes what the encoder gives, rounds it to float16 and gives it back in order. One memory holds what one
model, one preprocessing and one precision made. Knows nothing about graphs, questions, or lasting files.

Note [Where a frame lies]
    A frame's features and content tokens are one record of a fixed size, in a numbered slot. The first slots
    are memory, up to the budget. The others lie in a temporary file that has no name, so that an interrupted
    process leaves nothing behind; it is read with plain reads into one buffer, because the pages of a mapping
    would count as resident. Equal frames, by the digest of their pixels, share a slot.

Note [Evicted frames]
    An endless stream outgrows any disk. Under `on_full="evict"` nothing is written to disk, and the oldest
    frame's features go when the budget is full. Its content tokens stay, as a summary: the model still knows
    roughly what was there. What is lost is its context: no later question can look into that frame for what
    the question asks about. Beyond `max_frames` in all, the oldest summary goes too, and nothing is left.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from llamavid.errors import BundleError, DeviceError
from llamavid.runtime.features.slots import FeatureSlots, Half, disk_folder, mib

SPILL_BYTES = 8 << 30  # three hours at a frame a second: 0.72 MB a frame of EVA ViT-g
MAX_FRAMES = 32768  # two tokens each fill the longest published context, 65 536 tokens


@dataclass(frozen=True)
class MemoryUse:
    """What a memory holds and what it let go."""

    frames: int  # with features: what `batches` gives
    repeated: int  # of these, the ones that share an equal frame's storage
    evicted: int  # lost their features, since the beginning
    forgotten: int  # of these, the ones that lost their content tokens too
    resident_bytes: int  # in memory: features, content tokens and summary
    spilled_bytes: int  # on disk


@dataclass(frozen=True)
class Summary:
    """What is left of evicted frames, oldest first. E frames of k content tokens."""

    frame_indices: tuple[int, ...]
    pts_seconds: tuple[float, ...]
    content: Half  # [E, k, D]


class FeatureMemory:
    """Features within a byte budget; what is over spills to disk or evicts. One thread at a time."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        on_full: Literal["spill", "evict"] = "spill",
        spill_bytes: int = SPILL_BYTES,
        spill_folder: Path | str | None = None,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        """Nothing is allocated or opened before it is needed.

        Args:
            budget_bytes: of records in memory. Summaries, and a batch while it is read, come on top.
            on_full: what happens when the budget is full; Note [Evicted frames].
            spill_bytes: how large the spill file may become.
            spill_folder: where it lies; `$TMPDIR`, then `/var/tmp`, when left out: `/tmp` is often memory.
            max_frames: of an evicting memory, summaries included. What fits the model's context is enough.
        """
        assert budget_bytes >= 0, f"a budget of {budget_bytes} bytes"
        assert max_frames >= 1, f"at most {max_frames} frames"
        self._budget, self._evicts, self._max_frames = budget_bytes, on_full == "evict", max_frames
        self._spill_bytes = 0 if self._evicts else spill_bytes
        self._spill_folder = str(spill_folder or disk_folder())
        self._slots: FeatureSlots | None = None  # the first frame tells the sizes
        self._held: deque[tuple[int, float, int]] = deque()  # index, pts_seconds, slot
        self._summary: deque[tuple[int, float, Half]] = deque()  # index, pts_seconds, content tokens
        self._sharing: Counter[int] = Counter()  # slot -> frames
        self._slot_of: dict[bytes, int] = {}  # by digest
        self._digest_of: dict[int, bytes] = {}  # by slot
        self._appended = self._evicted = self._forgotten = 0
        self._closed = False

    def __enter__(self) -> FeatureMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the memory and the disk. What `batches` gave before stays readable."""
        self._closed = True
        if self._slots is not None:
            self._slots.close()
        self._slots = None
        for kept in (self._held, self._summary, self._sharing, self._slot_of, self._digest_of):
            kept.clear()

    # Frames in.

    def append(
        self,
        features: npt.NDArray[np.floating],
        content: npt.NDArray[np.floating],
        *,
        frame_indices: Sequence[int],
        pts_seconds: Sequence[float],
        digests: Sequence[bytes] | None = None,
    ) -> None:
        """Adds frames after those that are there.

        Args:
            features: [n, R, C], any float. R and C are the same in every call.
            content: their content tokens, [n, k, D].
            frame_indices: positions in the video.
            digests: of each frame's pixels, by `pixel_digests`. A frame whose digest is held is not stored
                again: it reads back as the first one.

        Raises:
            BundleError: a value does not fit float16.
            DeviceError: budget and disk are full. The frames before the one that did not fit are kept.
        """
        assert len(features) == len(content) == len(frame_indices) == len(pts_seconds), "parts of one batch"
        assert digests is None or len(digests) == len(features), "a digest for each frame, or none"
        slots = self._opened(features.shape[1:], content.shape[1:])
        half_features, half_content = half(features, frame_indices), half(content, frame_indices)
        for at, (index, pts) in enumerate(zip(frame_indices, pts_seconds, strict=True)):
            digest = digests[at] if digests is not None else None
            slot = self._slot_of.get(digest) if digest is not None else None
            if slot is None:
                slot = self._free_slot(slots)
                slots.write(slot, half_features[at], half_content[at])
                if digest is not None:
                    self._slot_of[digest], self._digest_of[slot] = slot, digest
            self._hold(index, pts, slot)

    def holds(self, digest: bytes) -> bool:
        """Whether a frame of these pixels is here: then it need not even be encoded. See `append_equal`."""
        return digest in self._slot_of

    def append_equal(self, digest: bytes, *, frame_index: int, pts_seconds: float) -> None:
        """Adds a frame that shows what a held one showed. `holds(digest)` must be true."""
        self._hold(frame_index, pts_seconds, self._slot_of[digest])

    # Frames out.

    def batches(self, size: int) -> Iterator[tuple[Half, Half]]:
        """(features [n, R, C], content [n, k, D]) in order, n up to `size`, of frames that have features.

        Each pair is a view of one buffer, good until the next. Nothing may be appended in between.
        """
        slots, appended = [slot for _, _, slot in self._held], self._appended
        if self._slots is None or not slots:
            return
        features, content = self._slots.buffers(min(size, len(slots)))
        for start in range(0, len(slots), size):
            assert self._appended == appended, "frames were appended while the memory was read"
            batch = slots[start : start + size]
            for row, slot in enumerate(batch):
                self._slots.read(slot, features[row], content[row])
            yield features[: len(batch)], content[: len(batch)]

    def __len__(self) -> int:
        return len(self._held)

    @property
    def frame_indices(self) -> tuple[int, ...]:
        """Of the frames that `batches` gives."""
        return tuple(index for index, _, _ in self._held)

    @property
    def pts_seconds(self) -> tuple[float, ...]:
        """Of the frames that `batches` gives."""
        return tuple(pts for _, pts, _ in self._held)

    def summary(self) -> Summary | None:
        """What is left of evicted frames; None where there are none. Note [Evicted frames]."""
        if not self._summary:
            return None
        indices, times, content = zip(*self._summary, strict=True)
        return Summary(indices, times, np.stack(content))

    def use(self) -> MemoryUse:
        slots = self._slots
        return MemoryUse(
            frames=len(self._held),
            repeated=len(self._held) - len(self._sharing),
            evicted=self._evicted,
            forgotten=self._forgotten,
            resident_bytes=(slots.resident_bytes if slots else 0)
            + sum(content.nbytes for _, _, content in self._summary),
            spilled_bytes=slots.spilled_bytes if slots else 0,
        )

    # Slots, shared and given back.

    def _opened(self, features: tuple[int, ...], content: tuple[int, ...]) -> FeatureSlots:
        assert not self._closed, "the memory is closed"
        if self._slots is None:
            self._slots = FeatureSlots(features, content, self._budget, self._spill_bytes, self._spill_folder)
        given, held = (features, content), (self._slots.features_shape, self._slots.content_shape)
        assert given == held, f"frames of {given}, where the others are {held}"
        return self._slots

    def _free_slot(self, slots: FeatureSlots) -> int:
        while self._evicts and slots.full and self._held:
            self._evict_oldest(slots)
        if slots.full:
            raise DeviceError(
                f"{len(self._held)} frames fill {mib(self._budget)} of memory and {mib(self._spill_bytes)} "
                f"of disk; one more takes {mib(slots.frame_bytes)}",
                next_step="Look at fewer frames a second, or allow more.",
            )
        return slots.next_free()

    def _hold(self, index: int, pts_seconds: float, slot: int) -> None:
        self._sharing[slot] += 1
        self._held.append((index, pts_seconds, slot))
        self._appended += 1
        assert self._slots is not None
        while self._evicts and len(self._held) + len(self._summary) > self._max_frames:
            if not self._summary:
                self._evict_oldest(self._slots)
            self._summary.popleft()
            self._forgotten += 1

    def _evict_oldest(self, slots: FeatureSlots) -> None:
        index, pts_seconds, slot = self._held.popleft()
        self._summary.append((index, pts_seconds, slots.content(slot)))
        self._evicted += 1
        self._sharing[slot] -= 1
        if self._sharing[slot] == 0:
            del self._sharing[slot]
            digest = self._digest_of.pop(slot, None)
            if digest is not None:
                del self._slot_of[digest]
            slots.give_back(slot)


def pixel_digests(pixels: npt.NDArray[np.floating]) -> list[bytes]:
    """Prepared pixels [n, 3, S, S] -> sha256 of each frame: equal ones have equal features."""
    return [hashlib.sha256(np.ascontiguousarray(frame).data).digest() for frame in pixels]


def half(values: npt.NDArray[np.floating], frame_indices: Sequence[int]) -> Half:
    """float [n, ...] -> float16, a copy only where it is another type. Raises `BundleError` on overflow."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16, copy=False)
    for index, frame in zip(frame_indices, rounded, strict=True):
        if not np.isfinite(frame).all():
            raise BundleError(
                f"the features of frame {index} do not fit float16",
                next_step="Check the bundle with `llamavid doctor`.",
            )
    return rounded
