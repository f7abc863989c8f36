"""What a figure depends on and a reader must know: processor, GPU, clocks, power mode, temperature, versions.

Looks and asks; changes nothing. What is not there is left out: most of it exists on some machines alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from llamavid import __version__
from llamavid.runtime.implementation import implementation, simd
from llamavid.runtime.kernels import our_library

SYSTEM = Path("/sys")
CPUINFO, _TEGRA = Path("/proc/cpuinfo"), Path("/etc/nv_tegra_release")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MODEL = Path("/proc/device-tree/model")  # a board's name
_PACKAGES = ("numpy", "onnxruntime", "av")
_PATIENCE_SECONDS = 10

# Of jetson_clocks --show, which has more: what is fixed and what may fall.
_CLOCK_LINES = ("cpu", "gpu", "emc", "nv power")


def machine_facts() -> dict[str, str]:
    """What two machines must have in common for their figures to be compared."""
    mode = _said("nvpmodel", "-q")
    found = {
        "board": _words(_MODEL),
        "processor": processor(),
        "cores": str(cores()),
        "quota": _quota(),
        "architecture": platform.machine(),
        "GPU": _gpu("name,memory.total"),
        "power mode": " ".join(mode.split()) if mode else _gpu("power.limit,clocks.max.sm"),
        "governor": _words(SYSTEM / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "pixels by": " ".join(filter(None, (implementation(), simd()))),
    }
    return {name: text for name, text in found.items() if text}


def machine_state() -> dict[str, str]:
    """What may differ between two profiles, and is told."""
    highest = _words(SYSTEM / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    found = {
        "llamavid": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "JetPack": (_words(_TEGRA).splitlines() or [""])[0].lstrip("# "),
        "driver": _gpu("driver_version"),
        "operators": "ours" if our_library() else "ONNX Runtime's",
        "CPU clock, highest": f"{int(highest) // 1000} MHz" if highest.isdecimal() else "",
        "jetson_clocks": _jetson_clocks(),
    }
    return {name: text for name, text in found.items() if text}


def processor() -> str:
    for line in _words(CPUINFO).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> str:
    """Of a container: told as microseconds of processor time in each period of as many."""
    spent, _, period = _words(_CPU_MAX).partition(" ")
    return f"{int(spent) / int(period):g} cores' time" if spent.isdecimal() and period.isdecimal() else ""


def _gpu(fields: str) -> str:
    """Of the first GPU that nvidia-smi tells of; Jetsons of JetPack 6 have none."""
    said = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said else ""


def _jetson_clocks() -> str:
    """Needs to be root: what it says to others is not a state."""
    lines = (line.strip() for line in _said("jetson_clocks", "--show").splitlines())
    return "; ".join(line for line in lines if line.lower().startswith(_CLOCK_LINES))


def _said(*command: str) -> str:
    """What a program prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _words(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
