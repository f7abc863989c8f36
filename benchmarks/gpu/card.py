"""Which machine this is: card, driver, CUDA, PyTorch, power limit, clocks now. Asks, and changes nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess

import torch

_PATIENCE_SECONDS = 10
_SHOWN = "CUDA_VISIBLE_DEVICES"
_FIELDS = {
    "driver": "driver_version",
    "power limit": "power.limit",
    "highest clocks": "clocks.max.sm,clocks.max.memory",
}
_CLOCKS = "clocks.sm,clocks.memory,temperature.gpu,power.draw"


def card_name(device: torch.device) -> str:
    """`NVIDIA H200`; of a CPU its architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def file_stem(device: torch.device) -> str:
    """`gpu_nvidia_h200`."""
    return "gpu_" + re.sub(r"[^a-z0-9]+", "_", card_name(device).lower()).strip("_")


def machine(device: torch.device) -> dict[str, str]:
    """What makes a figure comparable. What nobody tells is left out."""
    found = {
        "GPU": card_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": str(properties.multi_processor_count),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            **{
                name: told
                for name, fields in _FIELDS.items()
                if (told := nvidia_smi(fields, watched_gpu(device)))
            },
        }
    return found


def watched_gpu(device: torch.device) -> str:
    """What nvidia-smi calls this device. It counts all cards of the machine; CUDA those that it is shown."""
    if device.type != "cuda" or (torch.cuda.device_count() == 1 and _SHOWN not in os.environ):
        return "0"
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def clocks(gpu: str) -> str:
    """Of the multiprocessors and the memory, with temperature and power; empty without nvidia-smi."""
    return nvidia_smi(_CLOCKS, gpu)


def nvidia_smi(fields: str, gpu: str) -> str:
    """Of one GPU; empty where nvidia-smi is missing, fails or hangs."""
    command = ("nvidia-smi", f"--id={gpu}", f"--query-gpu={fields}", "--format=csv,noheader")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
