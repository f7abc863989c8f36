"""What fuzzers found, and a little of what they do: each input is read or refused in one line."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.json_mutator import json_mutated
from tests.fuzz.readers import CORPUS, READERS, Reader, check

KEPT = [(name, file) for name in READERS for file in sorted((CORPUS / name).iterdir())]
SECONDS = 5.0  # a hundred times what any of them takes


def prepared(name: str, folder: Path) -> Reader:
    READERS[name].beside(folder)
    return READERS[name]


@pytest.mark.parametrize(("name", "file"), KEPT, ids=lambda value: getattr(value, "name", value))
def test_every_kept_input_is_read_or_refused(tmp_path: Path, name: str, file: Path) -> None:
    started = time.monotonic()
    said = check(prepared(name, tmp_path), file.read_bytes(), tmp_path)
    assert time.monotonic() - started < SECONDS
    assert not (file.name.startswith("sound") and said)


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.is_json])
def test_changed_json_is_read_or_refused(tmp_path: Path, name: str) -> None:
    random, reader = Random(0), prepared(name, tmp_path)
    sound = (CORPUS / name / "sound").read_bytes()
    said = [check(reader, json_mutated(sound, random) or b"", tmp_path) for _ in range(300)]
    assert 0 < said.count("") < 200  # neither all refused nor all read: the mutator reaches behind the syntax


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_anywhere_is_read_or_refused(tmp_path: Path, name: str) -> None:
    reader = prepared(name, tmp_path)
    for kept in sorted((CORPUS / name).iterdir()):
        data = kept.read_bytes()[:6000]
        for length in range(0, len(data), max(1, len(data) // 50)):
            check(reader, data[:length], tmp_path)
