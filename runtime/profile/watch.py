"""Watches the machine while figures are made: clocks, temperature, and who else is at work.

A thread takes a sample every half second. `marks` says in words what speaks against the figures; it is pure,
so that a test can feed it any machine.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from llamavid.runtime.profile.machine_state import CPUINFO, SYSTEM
from llamavid.runtime.profile.processor_time import ProcessorTime

EVERY_SECONDS = 0.5

# Parts above which the machine was not ours alone. Of the cores' time.
OTHERS_AT_WORK, STOLEN = 0.10, 0.02
# A clock this far under the highest that was seen has fallen: governors step by 100 MHz, 5 % of 2 GHz.
CLOCK_FELL = 0.10
_BUSY_GPU, _BUSY_CORES = 30, 0.5  # percent, cores: a resting one's clock says nothing

# Of nvidia-smi's bits. The others (idle, clocks that were set, sync boost) are no fault.
_SLOWED = {0x4: "power cap", 0x8: "slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}
_FIELDS = "clocks.sm,utilization.gpu,temperature.gpu"
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # since driver 535, and before
_THROTTLES = (
    "devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    "class/hwmon/hwmon*/oc*_event_cnt",
)
_FORMAT, _LOOP = "--format=csv,noheader,nounits", f"--loop-ms={int(EVERY_SECONDS * 1000)}"


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment. Parts are of the cores' time since the last sample; None: not told."""

    others: float = 0.0  # busy with what neither this process nor one that it started does
    stolen: float = 0.0  # taken by the host of a virtual machine
    cpu_mhz: float | None = None  # the fastest core's, while this process worked
    gpu_mhz: float | None = None  # while it worked
    slowed_by: str = ""
    celsius: float | None = None
    throttled: int = 0  # counts of the processor's, or a Jetson's, slowing itself down; they only grow


def marks(samples: Sequence[Sample]) -> tuple[str, ...]:
    """What speaks against figures that were made meanwhile, a sentence each."""
    if not samples:
        return ()
    found = []
    others = sum(each.others for each in samples) / len(samples)
    stolen = sum(each.stolen for each in samples) / len(samples)
    if others > OTHERS_AT_WORK:
        found.append(f"other programs used {others:.0%} of the processor meanwhile")
    if stolen > STOLEN:
        found.append(f"the virtual machine's host took {stolen:.0%} of the processor's time")
    for what, clocks in (
        ("the processor's", [each.cpu_mhz for each in samples if each.cpu_mhz]),
        ("the GPU's", [each.gpu_mhz for each in samples if each.gpu_mhz]),
    ):
        if clocks and min(clocks) < (1 - CLOCK_FELL) * max(clocks):
            found.append(f"{what} clock fell from {max(clocks):.0f} to {min(clocks):.0f} MHz")
    if samples[-1].throttled > samples[0].throttled:
        found.append("the machine slowed itself down (heat or current)")
    slowed = sorted({each.slowed_by for each in samples if each.slowed_by})
    if slowed:
        found.append(f"the GPU slowed itself down ({', '.join(slowed)})")
    return tuple(found)


def ceiling_marks(samples: Sequence[Sample]) -> tuple[str, ...]:
    """What speaks against ceilings that were measured meanwhile. Products may lower a clock: no fault."""
    others = sum(each.others for each in samples) / len(samples) if samples else 0.0
    if others <= OTHERS_AT_WORK:
        return ()
    return (
        f"other programs used {others:.0%} of the processor while the ceilings were measured: these may be "
        "too low, and what is reached of them too high",
    )


def told(samples: Sequence[Sample]) -> dict[str, str]:
    """Clocks and temperature, as far as they were seen."""
    found = {}
    for name, unit, values in (
        ("CPU clock", "MHz", [each.cpu_mhz for each in samples if each.cpu_mhz]),
        ("GPU clock", "MHz", [each.gpu_mhz for each in samples if each.gpu_mhz]),
        ("temperature", "C", [each.celsius for each in samples if each.celsius]),
    ):
        if values:
            ends = dict.fromkeys(f"{end:.0f}" for end in (min(values), max(values)))
            found[name] = f"{' to '.join(ends)} {unit}"
    return found


class Watch:
    """`with Watch() as watch: ...`, then `watch.samples`; `gpu`: as nvidia-smi calls it."""

    def __init__(self, gpu: str = "0") -> None:
        self._gpu_name = gpu
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._gpu = _Gpu(self._gpu_name)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._gpu.close()

    def _look(self) -> None:
        before = ProcessorTime.now()
        while not self._over.wait(EVERY_SECONDS):
            after = ProcessorTime.now()
            others, stolen, own = after.since(before)
            before = after
            gpu_mhz, gpu_celsius, slowed = self._gpu.latest
            gpu_mhz = gpu_mhz or _jetson_gpu_mhz()
            self.samples.append(
                Sample(
                    others,
                    stolen,
                    _cpu_mhz() if own > _BUSY_CORES else None,
                    gpu_mhz,
                    slowed,
                    gpu_celsius or _celsius(),
                    _throttled(),
                )
            )


class _Gpu:
    """nvidia-smi, asked once and answering all the time: starting it again and again would disturb."""

    latest: tuple[float | None, float | None, str] = (None, None, "")  # MHz while busy, C, slowed by

    def __init__(self, name: str) -> None:
        self._name = name
        self._program: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for reasons in _REASONS:
            if self._over.is_set():
                return
            command = ("nvidia-smi", f"--id={self._name}", f"--query-gpu={_FIELDS},{reasons}", _FORMAT, _LOOP)
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            try:
                self._program = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
            except OSError:
                return
            assert self._program is not None
            assert self._program.stdout is not None
            for line in self._program.stdout:
                if line.count(",") == _FIELDS.count(",") + 1:  # otherwise it complains of a field
                    self.latest = read_gpu_line(line)

    def close(self) -> None:
        self._over.set()
        if self._program is not None:
            self._program.terminate()
            self._program.wait()
        self._thread.join(timeout=1)


def read_gpu_line(line: str) -> tuple[float | None, float | None, str]:
    """`1410, 98, 61, 0x0000000000000004` -> (1410.0, 61.0, "power cap"); the clock of a busy GPU alone."""
    clock, busy, celsius, reasons = ([*map(str.strip, line.split(",")), "", "", "", ""])[:4]
    bits = int(reasons, 16) if reasons.startswith("0x") else 0
    slowed = ", ".join(dict.fromkeys(word for bit, word in _SLOWED.items() if bits & bit))
    is_busy = (_number(busy) or 0.0) >= _BUSY_GPU
    return _number(clock) if is_busy else None, _number(celsius), slowed if is_busy else ""


def _cpu_mhz() -> float | None:
    """The fastest core's: the others may rest. None where the system does not say."""
    scaled = _largest("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq", lambda khz: khz / 1000)
    return scaled or max(
        map(float, re.findall(r"^cpu MHz\s*: ([\d.]+)$", _text(CPUINFO), re.M)), default=None
    )


def _throttled() -> int:
    """By the processor's heat (x86), or by a Jetson's current. Cores of one package count the same event."""
    return sum(int(_number(_text(file)) or 0) for pattern in _THROTTLES for file in SYSTEM.glob(pattern))


def _jetson_gpu_mhz() -> float | None:
    """Of a Jetson's GPU while it works (load is in thousandths)."""
    loads = [_number(_text(SYSTEM / place / "gpu.0/load")) for place in ("devices", "devices/platform")]
    if max(load or 0.0 for load in loads) < 10 * _BUSY_GPU:
        return None
    return _largest("class/devfreq/*gpu*/cur_freq", lambda hertz: hertz / 1e6)


def _celsius() -> float | None:
    return _largest("class/thermal/thermal_zone*/temp", lambda thousandths: thousandths / 1000)


def _largest(pattern: str, convert: Callable[[float], float]) -> float | None:
    found = [number for file in SYSTEM.glob(pattern) if (number := _number(_text(file))) is not None]
    return convert(max(found)) if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
