"""One reader under a coverage-guided fuzzer, from the kept corpus on; needs the `fuzz` extra.

    python -m tests.fuzz.fuzz manifest -max_total_time=600

Further arguments are libFuzzer's. It goes on until the time is over or a reader breaks its word (`check`),
and then names the input, which belongs into the corpus once the reader is mended.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path
from random import Random

import atheris

sys.meta_path.insert(0, PathFinder)  # an editable install has a loader of its own, which is not instrumented
with atheris.instrument_imports(include=["llamavid", "json", "pickle"]):
    from tests.fuzz.json_mutator import json_mutated
    from tests.fuzz.readers import CORPUS, READERS, check

ROOM = Path("build/fuzz")  # inputs that reach new lines, and those that break something: not the kept corpus


def main() -> None:
    name, *options = sys.argv[1:]
    memory = Path("/dev/shm")  # where a file is written ten times as fast
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        child = os.fork()  # libFuzzer ends its process without a word to Python
        if child == 0:
            _fuzz(name, Path(folder), options)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def _fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Does not return. `folder` is the reader's."""
    reader, found = READERS[name], ROOM / name
    found.mkdir(parents=True, exist_ok=True)
    reader.beside(folder)

    def run(data: bytes) -> None:
        check(reader, data, folder)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        other = json_mutated(data, random) if reader.is_json and random.random() < 0.8 else None
        if other is None or len(other) > max_size:
            return bytes(atheris.Mutate(data, max_size))
        return other

    limits = ["-max_len=200000", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    arguments = [sys.argv[0], str(found), str(CORPUS / name), f"-artifact_prefix={ROOM}/", *limits, *options]
    atheris.Setup(arguments, run, **({"custom_mutator": mutated} if reader.is_json else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
