"""The published movie files are read, and nothing that a pickle asks for is done."""

from __future__ import annotations

import os
import pickle
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamavid.errors import SourceError
from llamavid.feature_file import read_features
from llamavid.train import movie_pickles
from llamavid.train.movie_pickles import features_from_pickle, main, movie_from_pickle

FEATS = (
    np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float16)
)  # class token and 2 x 2 patches
MOVIE = {"feats": FEATS, "inputs": "<image>the rabbit<image><image>a butterfly"}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def pickled(folder: Path, content: object, protocol: int = 4) -> Path:
    return written(folder, pickle.dumps(content, protocol))


def written(folder: Path, data: bytes) -> Path:
    (folder / "movie.pkl").write_bytes(data)
    return folder / "movie.pkl"


class Runs:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_published_file_becomes_features_and_words(tmp_path: Path, protocol: int) -> None:
    movie = movie_from_pickle(pickled(tmp_path, MOVIE, protocol))
    assert np.array_equal(movie.features, FEATS[:, 1:])
    assert movie.subtitles == ("the rabbit", "", "a butterfly")
    assert (movie.frame_indices, movie.pts_seconds) == ((0, 1, 2), (0.0, 1.0, 2.0))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", [FEATS.astype(">f4"), np.asfortranarray(FEATS), FEATS[:, 1:]])
def test_an_array_alone_is_read_in_any_order_of_its_bytes(tmp_path: Path, protocol: int, array: Any) -> None:
    assert np.array_equal(features_from_pickle(pickled(tmp_path, array, protocol)), FEATS[:, 1:])


def test_the_names_of_older_and_newer_numpy_are_both_known(tmp_path: Path) -> None:
    data = pickle.dumps(FEATS, 2)
    older, newer = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    for name in (older, newer):
        renamed = data.replace(older, name).replace(newer, name)
        assert len(features_from_pickle(written(tmp_path, renamed))) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [os.mkdir, exec, getattr, np.load, np.lib.format.open_memmap])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, function: Any, protocol: int) -> None:
    target = tmp_path / "made"
    code = f"import os; os.mkdir({str(target)!r})" if function is exec else str(target)
    with pytest.raises(SourceError, match="it names"):
        movie_from_pickle(pickled(tmp_path, {**MOVIE, "more": Runs(function, code)}, protocol))
    assert not target.exists()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"cnumpy\ndtype\n(NU\x05valuetb.", "alters"),  # BUILD on a name
        (b"cnumpy\ndtype\n(S'O'\ntR.", "dtype 'O'"),
        (b"cnumpy\ndtype.type.__subclasses__\n.", "names"),
        (b"c__main__\nfeatures\n.", "names"),
        (b"\x80\x04P1\n.", "persistent"),
    ],
)
def test_nothing_is_reached_through_the_names_that_are_known(
    tmp_path: Path, data: bytes, problem: str
) -> None:
    with pytest.raises(SourceError, match=problem):
        movie_from_pickle(written(tmp_path, data))


def test_a_file_cut_or_changed_anywhere_is_refused_or_read_and_never_a_traceback(tmp_path: Path) -> None:
    chance, whole = random.Random(0), pickle.dumps(MOVIE, 4)
    damaged = [whole[:length] for length in range(0, len(whole) - 1, 3)]
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(whole))] = chance.randrange(256)
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        try:
            assert movie_from_pickle(written(tmp_path, data)).features.shape[0] > 0
        except SourceError:
            refused += 1
    assert refused > len(whole) / 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"few bytes",  # BINBYTES8
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 31) + b"few bytes",  # BYTEARRAY8
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"few bytes",  # FRAME
        b"\x80\x04Nr" + struct.pack("<I", (1 << 32) - 1) + b".",  # LONG_BINPUT: C's memo would take 64 GiB
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_a_number_in_the_file_takes_no_memory(tmp_path: Path, data: bytes) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError):
        movie_from_pickle(written(tmp_path, data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB


DOUBLED = b"(tp0\n0" + b"(g0\ng0\ntp0\n0" * 60 + b"g0\n"  # each twice in the next: 2**60 tuples to look at


@pytest.mark.parametrize(
    "data",
    [
        b"(dS'feats'\n" + pickle.dumps(FEATS, 0)[:-1] + b"sS'inputs'\n" + DOUBLED + b"s.",  # str() of it
        b"(d" + DOUBLED + b"I1\ns.",  # hash() of it
        b"(" + DOUBLED + b"I1\nd.",
        b"(d(" + DOUBLED + b"I1\nu.",
        b"\x80\x04\x8f(" + DOUBLED + b"\x90.",
        b"\x80\x04(" + DOUBLED + b"\x91.",
        b"cnumpy\ndtype\n(" + DOUBLED + b"tR.",  # repr() of it, in an error
        b"c_codecs\nencode\n(S'a'\n" + DOUBLED + b"tR.",
        b"cnumpy\ndtype\n(S'f2'\ntR(I3\n" + DOUBLED + b"tb.",
    ],
    ids=["text", "setitem", "dict", "setitems", "set", "frozenset", "dtype", "encoding", "byte order"],
)
def test_tuples_that_double_take_no_time(tmp_path: Path, data: bytes) -> None:
    """A kilobyte of pickle whose text would be an exabyte, and whose hash would take years."""
    with pytest.raises(SourceError) as caught:
        movie_from_pickle(written(tmp_path, data))
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_one_text_named_many_times_takes_its_memory_once(tmp_path: Path) -> None:
    """Each array took a copy of the text that its bytes were written as: 100 MB of them from 1 MB of file."""
    import resource

    text = "S'" + "a" * 10**6 + "'\np0\n0"
    asked = "c_codecs\nencode\n(g0\nS'latin1'\ntRp1\n0g1\n" * 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match="no movie"):
        movie_from_pickle(written(tmp_path, f"({text}{asked}l.".encode()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.pkl"
    with file.open("wb") as stream:
        stream.truncate(movie_pickles.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(SourceError, match="larger than 16 GiB"):
        movie_from_pickle(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"inputs": "<image>"}, "feats"),
        ({"feats": [1.0]}, "three dimensions"),
        ({"feats": FEATS[0]}, "three dimensions"),
        ({"feats": FEATS.astype(np.int64)}, "three dimensions"),
        ({"feats": FEATS[:, :3]}, "3 rows a frame"),
        ({"feats": FEATS[:0]}, "features are"),
        ({"feats": np.full_like(FEATS, np.nan)}, "not finite"),
        ({"feats": np.full(FEATS.shape, 1e9)}, "not finite"),
        ({"feats": FEATS, "inputs": "<image>one"}, "1 <image> for 3 frames"),
    ],
)
def test_what_is_no_movie_is_said_to_be_none(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        movie_from_pickle(pickled(tmp_path, content))


def test_the_command_writes_what_ask_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "movie.safetensors"
    assert main([str(pickled(tmp_path, MOVIE)), "-o", str(made)]) == 0
    assert read_features(made).subtitles == ("the rabbit", "", "a butterfly")
    assert capsys.readouterr().out.startswith(f"{made}: 3 frames. Next: llamavid ask BUNDLE")


def test_the_command_says_a_mistake_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.pkl"), "-o", str(tmp_path / "movie.safetensors")]) == 1
    assert main([str(tmp_path / "none.pkl")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True, True]
