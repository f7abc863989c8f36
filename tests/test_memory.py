"""What a container says of its memory, on files like its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamavid import memory

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 20 GiB available, and a folder for its container's counts."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {32 << 20} kB\nMemAvailable: {20 << 20} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def limit(system: Path, *, most: str, used: int, stat: str | None) -> None:
    (system / "memory.max").write_text(f"{most}\n")
    (system / "memory.current").write_text(f"{used}\n")
    if stat is not None:
        (system / "memory.stat").write_text(stat)


def test_without_a_container_it_is_the_machine_s(system: Path) -> None:
    assert memory.available_memory() == 20 * GIB


def test_a_container_without_a_limit_has_the_machine_s(system: Path) -> None:
    limit(system, most="max", used=GIB, stat="")
    assert memory.available_memory() == 20 * GIB


def test_files_that_were_read_count_as_free(system: Path) -> None:
    """A bundle that was hashed fills a container's count, and kept it from being built of."""
    stat = f"anon {GIB}\nfile {7 * GIB}\nshmem {GIB}\nactive_file {2 * GIB}\ninactive_file {4 * GIB}\n"
    limit(system, most=str(8 * GIB), used=8 * GIB, stat=stat)
    assert memory.available_memory() == 6 * GIB


@pytest.mark.parametrize("stat", [None, "", "active_file\n"])
def test_what_is_not_said_is_taken_as_used(system: Path, stat: str | None) -> None:
    limit(system, most=str(8 * GIB), used=7 * GIB, stat=stat)
    assert memory.available_memory() == GIB


def test_a_system_that_does_not_say_is_no_number(system: Path) -> None:
    (system / "meminfo").unlink()
    assert memory.available_memory() is None
