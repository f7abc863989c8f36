"""Optimization profiles: of every dimension that a contract names, the smallest, the usual, the largest.

Takes a graph's contract and the `Sizes` that a user may choose, gives `Profile`s with whole shapes. Knows
nothing of TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamavid.config import ModelConfig
from llamavid.contract import GraphContract
from llamavid.engines import Profile
from llamavid.errors import UsageError

Range = tuple[int, int, int]  # smallest, tuned for, largest

FRAMES, PREFILL, DECODE = "frames", "prefill", "decode"
CACHE = "cache"  # the dimension of `language_contract`
STATIC_CACHE = 8192  # tokens: an hour of video at a frame a second; 4.3 GB of a 7B model's in float16


@dataclass(frozen=True)
class Sizes:
    """What a user may choose.

    Args:
        frames: in one run of vision, content and context.
        prefill: tokens at once while a sequence is read.
        cache: rows of the key-value buffers. None goes up to the model's context length; where the cache
            has one length (the static lowering), which is the largest, to `STATIC_CACHE`.
    """

    frames: Range = (1, 8, 32)
    prefill: int = 512
    cache: Range | None = None

    def __post_init__(self) -> None:
        for name, sizes in (("frames", self.frames), ("cache", self.cache or (1, 1, 1))):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                given = ",".join(map(str, sizes))
                raise UsageError(f"{name} {given}", expected="smallest,usual,largest, such as 1,8,32")
        if self.prefill < 1:
            raise UsageError(f"prefill {self.prefill}", expected="1 token or more")


def profiles_of(
    contract: GraphContract, config: ModelConfig, sizes: Sizes, *, static: bool = False, one: bool = False
) -> tuple[Profile, ...]:
    """One profile of a frame graph; of a language model one to read and one to write.

    Args:
        static: the cache has one length.
        one: one for both. TensorRT-RTX chooses kernels by shape when an engine runs, and stores the weights
            once a profile: two layers of a 7B model in float16 took 1,887 MB with two, 1,075 with one.

    Raises:
        UsageError: more is asked for than the model's context length.
    """
    named = {dim for spec in contract.inputs for dim in spec.shape if isinstance(dim, str)}
    if "T" not in named:
        patches, words = config.vision.patches, config.text_decoder.max_tokens
        ranges = {
            "n": sizes.frames,
            "R": (patches, patches + 1, patches + 1),
            "L": (1, min(16, words), words),
        }
        return (_profile(FRAMES, contract, ranges),)
    length = config.language.context_length
    cache = sizes.cache or (min(256, length), min(2048, length), length)
    if static:
        only = sizes.cache[2] if sizes.cache else min(STATIC_CACHE, length)
        cache = (only, only, only)
    if cache[2] > length:
        raise UsageError(f"cache {cache[2]}", expected=f"at most {length}, the model's context length")
    prefill = min(sizes.prefill, cache[2])  # rows that the cache has no place for are never read at once
    # A prefill may be any length up to its largest, but most of a long sequence goes in pieces of that.
    reading = _profile(PREFILL, contract, {"T": (1, prefill, prefill), CACHE: cache})
    return (reading,) if one else (reading, _profile(DECODE, contract, {"T": (1, 1, 1), CACHE: cache}))


def _profile(name: str, contract: GraphContract, ranges: Mapping[str, Range]) -> Profile:
    smallest, tuned, largest = (
        {
            spec.name: tuple(dim if isinstance(dim, int) else ranges[dim][i] for dim in spec.shape)
            for spec in contract.inputs
        }
        for i in range(3)
    )
    return Profile(name, smallest, tuned, largest)
