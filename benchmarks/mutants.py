"""Damaged files by the thousand: one mutation of one sound file each, the same ones for the same number.

A mutation takes bytes and gives bytes. Some know where a container keeps its lengths and its picture's size:
damage anywhere is mostly refused at the first look, and what decodes a lying header is behind that.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.seeds import Seed

# A box's, chunk's or atom's name: its length stands before it, or behind it in RIFF.
_NAMES = re.compile(
    rb"moov|trak|mdia|minf|stbl|stsd|avcC|hvcC|stts|ctts|stss|stsz|stsc|stco|elst|tkhd|mdhd|mvhd|mdat|moof|traf"
    rb"|tfhd|trun|sidx|IHDR|IDAT|acTL|fcTL|fdAT|PLTE|RIFF|LIST|hdrl|strl|avih|strh|strf|movi|idx1|00dc|VP8 "
    rb"|\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|jp2h|ihdr|jp2c|iloc|ipco|ispe"
)
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Mutant:
    """number: which of them. kind: the seed's, `A + B` where two meet."""

    number: int
    kind: str
    mutation: str
    data: bytes


def mutant(seeds: Sequence[Seed], number: int, *, seed: int = 0) -> Mutant:
    """Number `number`, whichever others are made: every mutation of every seed in turn, at other places when
    all had their turn."""
    random = Random(f"{seed} {number}")
    first = seeds[number % len(seeds)]
    names = list(MUTATIONS)
    name = names[number // len(seeds) % len(names)]
    other = random.choice([one for one in seeds if one is not first])
    data = MUTATIONS[name](first, other, random)
    return Mutant(number, first.kind, name, _with_checksums(data) if random.random() < 0.8 else data)


# Cut


def cut_at_the_start(seed: Seed, _: Seed, random: Random) -> bytes:
    return seed.data[: random.randint(1, min(64, len(seed.data) - 1))]


def cut_before_a_box(seed: Seed, other: Seed, random: Random) -> bytes:
    boxes = [match.start() - 4 for match in _NAMES.finditer(seed.data) if match.start() > 8]
    return seed.data[: random.choice(boxes)] if boxes else cut_anywhere(seed, other, random)


def cut_anywhere(seed: Seed, _: Seed, random: Random) -> bytes:
    return seed.data[: random.randrange(1, len(seed.data))]


def cut_before_the_end(seed: Seed, _: Seed, random: Random) -> bytes:
    return seed.data[: -random.randint(1, max(1, len(seed.data) // 20))]


def beginning_lost(seed: Seed, _: Seed, random: Random) -> bytes:
    return seed.data[random.randrange(1, len(seed.data)) :]


# Bits and bytes


def few_bits(seed: Seed, _: Seed, random: Random) -> bytes:
    return _flipped(seed.data, random, random.randint(1, 10), len(seed.data))


def many_bits(seed: Seed, _: Seed, random: Random) -> bytes:
    return _flipped(seed.data, random, max(10, len(seed.data) // 100), len(seed.data))


def bits_of_the_header(seed: Seed, _: Seed, random: Random) -> bytes:
    return _flipped(seed.data, random, random.randint(1, 6), min(512, len(seed.data)))


def bits_behind_the_header(seed: Seed, _: Seed, random: Random) -> bytes:
    """Decoders get these: containers look sound."""
    head = min(2048, len(seed.data) // 3)
    tail = seed.data[head:]
    return seed.data[:head] + _flipped(tail, random, max(4, len(tail) // 200), len(tail))


def bytes_zeroed(seed: Seed, _: Seed, random: Random) -> bytes:
    return _overwritten(seed.data, random, lambda count: bytes(count))


def bytes_made_up(seed: Seed, _: Seed, random: Random) -> bytes:
    return _overwritten(seed.data, random, random.randbytes)


def bytes_all_ones(seed: Seed, _: Seed, random: Random) -> bytes:
    return _overwritten(seed.data, random, lambda count: b"\xff" * count)


# Pieces


def piece_twice(seed: Seed, _: Seed, random: Random) -> bytes:
    start, end = _piece(seed.data, random)
    return seed.data[:end] + seed.data[start:end] * random.choice((1, 1, 20)) + seed.data[end:]


def piece_lost(seed: Seed, _: Seed, random: Random) -> bytes:
    start, end = _piece(seed.data, random)
    return seed.data[:start] + seed.data[end:]


def pieces_changed_places(seed: Seed, _: Seed, random: Random) -> bytes:
    a, b, c, d = sorted(random.randrange(len(seed.data) + 1) for _ in range(4))
    data = seed.data
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


# What the header says


def length_of_a_box(seed: Seed, other: Seed, random: Random) -> bytes:
    names = list(_NAMES.finditer(seed.data))
    if not names:
        return any_number(seed, other, random)
    name = random.choice(names)
    at = random.choice((name.start() - 4, name.end()))
    return _with_number(seed.data, max(0, at), 4, random)


def number_in_a_box(seed: Seed, other: Seed, random: Random) -> bytes:
    """Counts, offsets, scales: within 40 bytes behind a box's name."""
    names = list(_NAMES.finditer(seed.data))
    if not names:
        return any_number(seed, other, random)
    at = random.choice(names).end() + 4 * random.randrange(10)
    return _with_number(seed.data, at, random.choice((1, 2, 4)), random)


def any_number(seed: Seed, _: Seed, random: Random) -> bytes:
    at = random.randrange(min(len(seed.data), 600))
    return _with_number(seed.data, at, random.choice((1, 2, 4, 8)), random)


def size_of_the_picture(seed: Seed, other: Seed, random: Random) -> bytes:
    """Every place where the picture's own width or height stands, one of them changed or all alike."""
    places = {
        match.start(): layout
        for size in seed.sizes
        for layout in (">H", "<H")
        for match in re.finditer(re.escape(struct.pack(layout, size)), seed.data[:4096])
    }
    if not places:
        return any_number(seed, other, random)
    value = random.choice((0, 1, 2, 4096, 5461, 8191, 16384, 16385, 32767, 65535))
    data = bytearray(seed.data)
    for at in places if random.random() < 0.4 else random.sample(sorted(places), 1):
        struct.pack_into(places[at], data, at, value)
    return bytes(data)


# Two files


def one_after_another(seed: Seed, other: Seed, random: Random) -> bytes:
    return seed.data + other.data


def half_and_half(seed: Seed, other: Seed, random: Random) -> bytes:
    share = random.random()
    return seed.data[: int(len(seed.data) * share)] + other.data[int(len(other.data) * share) :]


def header_of_another(seed: Seed, other: Seed, random: Random) -> bytes:
    length = random.randint(8, 1024)
    return other.data[:length] + seed.data[length:]


MUTATIONS: dict[str, Callable[[Seed, Seed, Random], bytes]] = {
    act.__name__.replace("_", " "): act
    for act in (
        *(length_of_a_box, number_in_a_box, size_of_the_picture, any_number),
        *(one_after_another, half_and_half, header_of_another),
        *(few_bits, many_bits, bits_of_the_header, bits_behind_the_header),
        *(bytes_zeroed, bytes_made_up, bytes_all_ones),
        *(piece_twice, piece_lost, pieces_changed_places),
        *(cut_at_the_start, cut_before_a_box, cut_anywhere, cut_before_the_end, beginning_lost),
    )
}


def _flipped(data: bytes, random: Random, count: int, within: int) -> bytes:
    flipped = bytearray(data)
    for _ in range(count):
        flipped[random.randrange(within)] ^= 1 << random.randrange(8)
    return bytes(flipped)


def _overwritten(data: bytes, random: Random, fill: Callable[[int], bytes]) -> bytes:
    start, end = _piece(data, random)
    return data[:start] + fill(end - start) + data[end:]


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    """Start and end: a few bytes, or up to a third of the file."""
    length = min(len(data) - 1, random.choice((16, 256, 4096, len(data) // 3)))
    start = random.randrange(len(data) - length)
    return start, start + length


def _with_number(data: bytes, at: int, width: int, random: Random) -> bytes:
    most = 1 << 8 * width
    value = random.choice((0, 1, 2, 7, most // 2 - 1, most // 2, most - 2, most - 1, random.randrange(most)))
    return data[:at] + value.to_bytes(width, random.choice(("big", "little"))) + data[at + width :]


def _with_checksums(data: bytes) -> bytes:
    """PNG chunks get the checksums of what they hold now: Pillow would look no further."""
    if not data.startswith(_PNG):
        return data
    fixed, at = bytearray(data), len(_PNG)
    while at + 12 <= len(fixed):
        length = int.from_bytes(fixed[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)
