"""The published movie files, which are pickles, become feature files without being unpickled.

    python -m llamavid.train.movie_pickles tt0120338.pkl -o tt0120338.safetensors

A pickle is a program. Here it may build numbers, text, lists, dicts and arrays, and name nothing else: the
names that NumPy's pickles use stand for our own makers, so that not even NumPy runs on what the file says.
The published files hold {"feats": float16 [T, 1+N, C], "inputs": "<image>words<image>..."}.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from llamavid.errors import SourceError
from llamavid.feature_file import StoredFeatures, write_features
from llamavid.train.parser import Parser, run_command

MAX_BYTES = 1 << 34  # six hours at a frame a second

_DTYPE = re.compile(r"[fiu][1248]|b1")
_IMAGE = "<image>"  # before each frame's words
_EXPECTED = 'float16 [T, 1+N, C], alone or as "feats" of a dict'


def movie_from_pickle(path: Path) -> StoredFeatures:
    """A published movie file: features without the class token, and the words after each frame.

    The file has no times; the published ones have a frame a second, and that is what is said here.

    Raises:
        SourceError: the file is missing, too large, damaged, asks for code, or holds something else.
    """
    content = _content(path)
    try:
        features = _features(content["feats"] if isinstance(content, dict) else content)
        frames = range(len(features))
        return StoredFeatures(
            features,
            has_class_token=False,
            bundle_digest="",
            frame_indices=tuple(frames),
            pts_seconds=tuple(map(float, frames)),
            subtitles=_subtitles(content, len(frames)),
        )
    except (ValueError, KeyError) as error:
        raise SourceError(f"{path} is no movie file ({error})", expected=_EXPECTED) from error


def features_from_pickle(path: Path) -> npt.NDArray[np.float16]:
    """[T, N, C] of a published movie file. Raises as `movie_from_pickle`."""
    return movie_from_pickle(path).features


def _features(stored: object) -> npt.NDArray[np.float16]:
    """Without the class token, which the reference drops when it uses the file (`feats[:, 1:]`).

    Patches are a square grid, so that N and 1+N rows cannot be taken for each other.
    """
    array: npt.NDArray[Any] = stored.value() if isinstance(stored, _Array) else np.empty(0)
    if array.ndim != 3 or array.dtype.kind != "f":
        raise ValueError("it holds no array of numbers in three dimensions")
    rows = array.shape[1]
    if not (_is_square(rows) or _is_square(rows - 1)):
        raise ValueError(f"{rows} rows a frame, which is no square of patches")
    with np.errstate(over="ignore"):  # `StoredFeatures` refuses what is not finite
        return array[:, 0 if _is_square(rows) else 1 :].astype("<f2", copy=False)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _subtitles(content: object, frames: int) -> tuple[str, ...]:
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if inputs is None:
        return ("",) * frames
    if not isinstance(inputs, str):
        raise ValueError('"inputs" is no text')
    before, *said = inputs.split(_IMAGE)
    if before or len(said) != frames:
        raise ValueError(f'"inputs" has {len(said)} {_IMAGE} for {frames} frames')
    return tuple(said)


# Reading without running.


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise pickle.UnpicklingError(f"it is larger than {MAX_BYTES >> 30} GiB")
            return _Reader(file, encoding="latin1").load()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", expected="a movie's pickle") from error
    except Exception as error:  # a damaged pickle is a damaged program: it raises whatever it comes upon
        raise SourceError(
            f"{path} is refused ({str(error) or type(error).__name__})",
            expected="a pickle of arrays and text",
            next_step="Download it again; a pickle that names anything else could run code.",
        ) from error


class _Maker:
    """What a name in a pickle stands for: it may be called, and not altered."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it alters what it names")


class _DType:
    """Stands for `numpy.dtype`: a number's kind and size; the state tells the order of its bytes."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"dtype {_quoted(name)}")
        self.value = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1]
        if not isinstance(order, str) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"byte order {_quoted(order)}")
        self.value = np.dtype(order.replace("=", "").replace("|", "") + self.value.str[1:])


class _Encoded:
    """How protocol 2 writes bytes: text that stands for them."""

    def __init__(self, text: Any, encoding: Any) -> None:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError(f"encoding {_quoted(encoding)}")
        self.text = text


class _Array:
    """Stands for `numpy.ndarray`. Its bytes are looked at when its value is asked for, and no sooner: a small
    file could have many of one text made."""

    def __init__(self, *_: object) -> None:
        self._made_of: tuple[Any, ...] = (b"", None, (), "C")

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self._made_of = (raw, dtype, shape, "F" if is_fortran else "C")

    def value(self) -> npt.NDArray[Any]:
        """Raises `ValueError` when the bytes are not as many as the shape says."""
        raw, dtype, shape, order = self._made_of
        text = raw.text if isinstance(raw, _Encoded) else raw
        data = text.encode("latin1") if isinstance(text, str) else text  # Python 2 wrote its bytes as text
        if not isinstance(data, bytes) or not isinstance(dtype, _DType):
            raise ValueError("an array is made of something else than bytes")
        if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
            raise ValueError("an array has no shape")
        if order not in ("C", "F"):
            raise ValueError("an array has no order")
        return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.__setstate__((1, shape, dtype, order == "F", data))
    return made


def _quoted(value: object) -> str:
    """What a file says, in an error. A list of lists of one list has no end that one could wait for."""
    return repr(value[:40]) if isinstance(value, str) else f"of type {type(value).__name__}"


_RECONSTRUCT, _FROM_BUFFER = _Maker(_Array), _Maker(_array)
_MAKERS = {
    ("numpy", "ndarray"): _Maker(_Array),
    ("numpy", "dtype"): _Maker(_DType),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _Maker(_Encoded),
}


def _with_plain_keys(code: int) -> Callable[[Any], None]:
    """What puts items into a dict, after a look at their keys: the last pair, or all since the mark."""
    put = pickle._Unpickler.dispatch[code]

    def checked(reader: Any) -> None:
        keys = reader.stack[-2:-1] if code == pickle.SETITEM[0] else reader.stack[::2]
        if not all(isinstance(key, (str, int, float)) for key in keys):
            raise pickle.UnpicklingError("a key that is neither text nor a number")
        put(reader)

    return checked


_OF_SETS = {code[0] for code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)}


class _Reader(pickle._Unpickler):
    """Knows the names of `_MAKERS` alone.

    Python's own implementation, not the one in C, which clears as much memory as a number in the file says.
    A bytearray does so in both, and is read as bytes, which are laid out alike.

    Tuples in tuples, each twice in the next, take a line of the file and for ever to hash: so keys are text
    or numbers, and there are no sets.
    """

    dispatch: ClassVar = {
        **{code: load for code, load in pickle._Unpickler.dispatch.items() if code not in _OF_SETS},
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
        **{code[0]: _with_plain_keys(code[0]) for code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT)},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _MAKERS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _MAKERS[module, name]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    movie = movie_from_pickle(options.pickle)
    write_features(options.output, movie)
    made, frames = options.output, len(movie.features)
    print(f'{made}: {frames} frames. Next: llamavid ask BUNDLE {made} "question"')


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.movie_pickles",
        description="Turn a published movie file into a feature file, without running the pickle that it is.",
    )
    made.add_argument("pickle", type=Path, metavar="FILE.pkl")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    return made


if __name__ == "__main__":
    sys.exit(main())
