"""What a machine under load, or one that slows itself down, is told by."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamavid.runtime.profile import machine_state
from llamavid.runtime.profile import watch as watch_module
from llamavid.runtime.profile.processor_time import ProcessorTime
from llamavid.runtime.profile.watch import Sample, Watch, ceiling_marks, marks, read_gpu_line, told


def test_a_machine_of_its_own_is_not_marked() -> None:
    assert marks([Sample(others=0.02, cpu_mhz=3000, gpu_mhz=1410, celsius=60)] * 5) == ()
    assert marks([]) == ()


def test_other_programs_at_work_are_told() -> None:
    assert marks([Sample(others=0.5)] * 4) == ("other programs used 50% of the processor meanwhile",)


def test_ceilings_that_were_measured_beside_other_programs_are_doubted_and_a_lower_clock_is_not() -> None:
    (mark,) = ceiling_marks([Sample(others=0.4)] * 3)
    assert "used 40% of the processor while the ceilings were measured" in mark
    assert ceiling_marks([Sample(others=0.01, cpu_mhz=3000), Sample(cpu_mhz=2000)]) == ()
    assert ceiling_marks([]) == ()


def test_a_process_that_this_one_started_is_not_taken_for_another_program() -> None:
    """Decoding, or a compiler's workers: its time is ours while it runs and when it has ended, and once."""
    before = ProcessorTime.now()
    grandchild = f"import subprocess; subprocess.run({[sys.executable, '-c', _BUSY]!r})"
    with subprocess.Popen([sys.executable, "-c", grandchild], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        alive = ProcessorTime.now().own - before.own
        started.stdout.read()
    ended = ProcessorTime.now().own - before.own
    assert 0.2 < alive <= ended < alive + 0.5


_BUSY = """
import time
while time.process_time() < 0.3: pass
print(flush=True)
while time.process_time() < 0.4: pass
"""


def test_time_that_the_virtual_machine_s_host_took_is_told() -> None:
    (mark,) = marks([Sample(stolen=0.08)] * 4)
    assert "host took 8%" in mark


def test_a_clock_that_fell_is_told_with_both_numbers() -> None:
    (mark,) = marks([Sample(gpu_mhz=1410), Sample(), Sample(gpu_mhz=1100)])
    assert mark == "the GPU's clock fell from 1410 to 1100 MHz"
    (mark,) = marks([Sample(cpu_mhz=3500), Sample(cpu_mhz=2000)])
    assert mark == "the processor's clock fell from 3500 to 2000 MHz"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("1410, 98, 61, 0x0000000000000000", (1410.0, 61.0, "")),
        ("1095, 98, 88, 0x0000000000000060", (1095.0, 88.0, "heat")),
        ("1200, 98, 70, 0x0000000000000004", (1200.0, 70.0, "power cap")),
        ("345, 0, 35, 0x0000000000000001", (None, 35.0, "")),  # idle
        ("[N/A], [N/A], [N/A], [N/A]", (None, None, "")),
        ("", (None, None, "")),
    ],
)
def test_what_nvidia_smi_says_of_a_gpu(line: str, found: tuple[float | None, float | None, str]) -> None:
    assert read_gpu_line(line) == found


def test_a_gpu_that_slowed_itself_down_is_marked_with_its_reason() -> None:
    assert marks([Sample(slowed_by="heat"), Sample()]) == ("the GPU slowed itself down (heat)",)


def test_clocks_and_temperatures_are_told_as_they_ranged() -> None:
    assert told([Sample(gpu_mhz=1410, celsius=50), Sample(gpu_mhz=1350, celsius=61)]) == {
        "GPU clock": "1350 to 1410 MHz",
        "temperature": "50 to 61 C",
    }
    assert told([Sample(cpu_mhz=2300), Sample(cpu_mhz=2300.2)]) == {"CPU clock": "2300 MHz"}


@pytest.mark.parametrize(
    ("told_by", "found"), [("150000 100000\n", "1.5 cores' time"), ("max 100000\n", None), ("", None)]
)
def test_a_container_s_part_of_the_processor_is_told_in_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str, found: str | None
) -> None:
    (tmp_path / "cpu.max").write_text(told_by)
    monkeypatch.setattr(machine_state, "_CPU_MAX", tmp_path / "cpu.max")
    assert machine_state.machine_facts().get("quota") == found


def test_a_watch_looks_at_this_machine_and_ends() -> None:
    with Watch() as watch:
        sum(i * i for i in range(3_000_000))
        watch._over.wait(0.7)
    assert watch.samples
    assert all(-1.5 < each.others < 1.5 and 0 <= each.stolen <= 1 for each in watch.samples)


def system(folder: Path, files: dict[str, str]) -> None:
    for name, words in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{words}\n")


JETSON = {  # AGX Orin, JetPack 6, while its GPU works
    "devices/platform/gpu.0/load": "983",
    "class/devfreq/17000000.gpu/cur_freq": "1300500000",
    "class/thermal/thermal_zone0/temp": "71500",
    "class/hwmon/hwmon2/oc1_event_cnt": "0",
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2201600",
}
LAPTOP = {
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3500000",
    "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "800000",
    "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "4",
}


@pytest.mark.parametrize(
    ("machine", "then", "expected"),
    [
        (
            JETSON,
            {"class/devfreq/17000000.gpu/cur_freq": "816000000", "class/hwmon/hwmon2/oc1_event_cnt": "7"},
            ("the GPU's clock fell from 1300 to 816 MHz", "the machine slowed itself down (heat or current)"),
        ),
        (
            JETSON,
            {"devices/platform/gpu.0/load": "12", "class/devfreq/17000000.gpu/cur_freq": "306000000"},
            (),
        ),
        (JETSON, {}, ()),
        (
            LAPTOP,
            {"devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1900000"},
            ("the processor's clock fell from 3500 to 1900 MHz",),
        ),
        (
            LAPTOP,
            {"devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "9"},
            ("the machine slowed itself down (heat or current)",),
        ),
    ],
    ids=["Jetson throttles", "Jetson rests", "Jetson is steady", "clock falls", "processor is hot"],
)
def test_a_watch_marks_a_machine_that_throttles_by_what_its_system_tells(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: dict[str, str],
    then: dict[str, str],
    expected: tuple[str, ...],
) -> None:
    """The system's files as recorded, and what they say when the machine has become hot."""
    system(tmp_path, machine)
    monkeypatch.setattr(watch_module, "SYSTEM", tmp_path)
    monkeypatch.setattr(watch_module, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(watch_module, "_BUSY_CORES", -1)  # whatever else is at work on the tests' machine
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    with Watch() as watch:
        work_until(lambda: len(watch.samples) >= 2)
        system(tmp_path, then)
        seen = len(watch.samples)
        work_until(lambda: len(watch.samples) >= seen + 3)
    found = [
        mark for mark in marks(watch.samples) if "other programs" not in mark and "host took" not in mark
    ]
    assert tuple(found) == expected


def work_until(is_over: Callable[[], bool]) -> None:
    """Keeps this process busy: a resting one's clock says nothing."""
    end = time.monotonic() + 30
    while not is_over():
        assert time.monotonic() < end, "the watch took no samples"
        sum(range(2000))


def test_a_system_that_does_not_scale_tells_its_clock_in_cpuinfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by = tmp_path / "cpuinfo"
    told_by.write_text("processor\t: 0\ncpu MHz\t\t: 2300.000\n\nprocessor\t: 1\ncpu MHz\t\t: 2401.5\n")
    monkeypatch.setattr(watch_module, "SYSTEM", tmp_path)
    monkeypatch.setattr(watch_module, "CPUINFO", told_by)
    assert watch_module._cpu_mhz() == 2401.5
    told_by.unlink()
    assert watch_module._cpu_mhz() is None


def program(folder: Path, name: str, words: str, code: int = 0) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{words}\nEND\nexit {code}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("known", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_a_gpu_is_watched_by_drivers_before_and_after_the_reasons_were_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    file = tmp_path / "nvidia-smi"
    says = "while :; do echo '1095, 98, 88, 0x0000000000000040'; sleep 0.1; done"
    file.write_text(f'#!/bin/sh\ncase "$2" in *{known}*) {says};; *) echo not a valid field; exit 2;; esac\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with Watch() as watch:
        watch._over.wait(1.3)
    assert (watch.samples[-1].gpu_mhz, watch.samples[-1].slowed_by) == (1095.0, "heat")


def test_a_jetson_s_power_mode_and_clocks_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nvpmodel", "NV Power Mode: MAXN\n0")
    program(
        tmp_path, "jetson_clocks", "SOC family:tegra234\nGPU MinFreq=1300500000\nFAN Dynamic Speed\nEMC 3199"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine_state.machine_facts()["power mode"] == "NV Power Mode: MAXN 0"
    assert machine_state.machine_state()["jetson_clocks"] == "GPU MinFreq=1300500000; EMC 3199"


def test_what_is_absent_or_refuses_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "jetson_clocks", "Error: must run as root", code=1)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    facts, state = machine_state.machine_facts(), machine_state.machine_state()
    assert {"processor", "cores"} <= facts.keys()
    assert "power mode" not in facts
    assert "jetson_clocks" not in state
    assert all({**facts, **state}.values())
