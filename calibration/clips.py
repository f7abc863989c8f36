"""Which clips are watched: those that files, folders and lists name, and a choice among them by chance.

    found = find_clips([Path("videos"), Path("more.txt")], endings=(".mp4", ".png"))
    for clip in in_chosen_order(found, seed=0): ...

Chance is a hash of each clip's own path from what was named, and the seed: the same on every machine, and a
clip added or taken away moves no other. Opens no video: a file that turns out to be none is left to who
decodes it, and the next one takes its place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamavid.errors import UsageError

LIST = ".txt"
_LIST_LIMIT = 16 << 20  # bytes: some hundred thousand paths
_MOST = 10**6  # files in a folder; what has more was not meant


@dataclass(frozen=True)
class FoundClip:
    """A file that may be a clip.

    path: to open it by.
    name: its path from the folder or list that it was found by, or its file name; with /, on any system.
    """

    path: Path
    name: str


def find_clips(named: Sequence[Path], *, endings: Sequence[str]) -> list[FoundClip]:
    """Every file that is named, each once.

    Args:
        named: video and picture files; folders, with all that is in them but what is hidden; `.txt` lists of
            files and folders, one a line, relative to the list.
        endings: of the files to take from folders, `.mp4`. A file named by itself may have any.

    Raises:
        UsageError: a path does not exist, or a list is no text.
    """
    by_path: dict[Path, FoundClip] = {}
    for path in named:
        for clip in _clips_of(path, tuple(endings)):
            by_path.setdefault(clip.path.resolve(), clip)
    return list(by_path.values())


def in_chosen_order(found: Sequence[FoundClip], *, seed: int) -> list[FoundClip]:
    """Shuffled: the first N are the choice of N, the others stand in for those that cannot be read."""
    return sorted(found, key=lambda clip: (_chance(clip, seed), clip.name, str(clip.path)))


def require_clips(found: int, wanted: int, *, unreadable: int = 0) -> None:
    """Raises `UsageError` where there are fewer than wanted.

    Args:
        found: clips that can be watched, as far as is known.
        unreadable: that were found beside these, and turned out to be none.
    """
    if found >= wanted:
        return
    broken = f" ({unreadable} more cannot be read)" if unreadable else ""
    fewer = f", or pass --clips {found}" if found else ", or pass --sample"
    raise UsageError(
        f"{found} clip{'' if found == 1 else 's'} found{broken}",
        expected=f"{wanted} to calibrate on",
        next_step=f"Name more clips{fewer}.",
    )


def _clips_of(path: Path, endings: tuple[str, ...]) -> Iterator[FoundClip]:
    if path.is_dir():
        for file in _files_below(path, endings):
            yield FoundClip(file, file.relative_to(path).as_posix())
    elif not path.exists():
        raise UsageError(f"{path} does not exist", expected="a video, a picture, a folder or a list of them")
    elif path.suffix.lower() == LIST:
        yield from _clips_of_list(path, endings)
    else:
        yield FoundClip(path, path.name)


def _files_below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """In order of their names, whatever the disk's order. Linked folders are not entered: no end of them."""
    found: list[Path] = []
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (name for name in sorted(files) if not name.startswith("."))
        found += [Path(at, name) for name in shown if name.lower().endswith(endings)]
        if len(found) > _MOST:
            raise UsageError(
                f"{folder} holds more than {_MOST} videos and pictures", next_step="Name a folder inside it."
            )
    return found


def _clips_of_list(file: Path, endings: tuple[str, ...]) -> Iterator[FoundClip]:
    for number, line in enumerate(_lines(file), 1):
        entry = file.parent / line
        if not line:
            continue
        if entry.is_dir():
            for inner in _files_below(entry, endings):
                yield FoundClip(inner, f"{Path(line).as_posix()}/{inner.relative_to(entry).as_posix()}")
        elif entry.is_file():
            yield FoundClip(entry, Path(line).as_posix())
        else:
            raise UsageError(
                f"line {number} of {file} names {line}, which does not exist",
                expected="the path of a video, a picture or a folder, relative to the list",
            )


def _lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _LIST_LIMIT:
            raise UsageError(f"{file} has {file.stat().st_size} bytes", expected=f"at most {_LIST_LIMIT}")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text", expected="a list of clips, one a line") from error
    if "\0" in text:
        raise UsageError(f"{file} is not text", expected="a list of clips, one a line")
    return [line.strip() for line in text.splitlines()]


def _chance(clip: FoundClip, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {clip.name}".encode("utf-8", "surrogateescape")).digest()
