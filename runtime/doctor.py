"""What this machine can run, found by looking and not by trying.

Gives findings, one a subject; imports nothing that is not installed.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llamavid import __version__
from llamavid.bundle import GRAPHS, Bundle, open_bundle
from llamavid.errors import DeviceError
from llamavid.memory import available_memory
from llamavid.runtime.implementation import implementation, simd
from llamavid.runtime.kernels import our_library
from llamavid.targets import Library

_EXTRAS = {  # extra -> what it needs, and what it is for
    "export": (("torch", "transformers", "onnx", "safetensors"), "checkpoints become bundles"),
}
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")


@dataclass(frozen=True)
class Finding:
    subject: str
    ok: bool
    text: str


def examine(bundle: Path | None = None) -> list[Finding]:
    """Findings about this machine, then about `bundle`. Raises `BundleError` when that is not sound."""
    findings = [
        _software(),
        _processor(),
        _memory(),
        _onnx_runtime(),
        _operators(),
        _pixels(),
        _decoding(),
        _gpu(),
    ]
    findings += [*_libraries(), *(_extra(name) for name in _EXTRAS)]
    if bundle is None:
        return findings
    opened = open_bundle(bundle)
    return [*findings, *_bundle(opened), *_engines(opened)]


def _software() -> Finding:
    return Finding(
        "llamavid", True, f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    )


def _processor() -> Finding:
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
            elif key.strip() == "model name":
                model = value.strip()
    known = [feature for feature in _CPU_FEATURES if feature in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(
        "processor", True, f"{model}, {cores} cores; {' '.join(known) or 'no vector extensions known'}"
    )


def _memory() -> Finding:
    free = available_memory()
    return Finding(
        "memory", free is not None, f"{free / 2**30:.1f} GiB available" if free else "not known here"
    )


def _onnx_runtime() -> Finding:
    import onnxruntime

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding(
        "ONNX Runtime",
        True,
        f"{onnxruntime.__version__}; built with {', '.join(providers)}; bundles run on CPU",
    )


def _pixels() -> Finding:
    used = implementation()
    slower = "numpy: equal and slower; reinstall where a C++17 compiler is"
    return Finding("pixels", used == "native", f"native, {simd()}" if used == "native" else slower)


def _operators() -> Finding:
    """What runs int8 products and attentions on the CPU."""
    theirs = "ONNX Runtime's; our faster ones need a processor with AVX-512 VNNI"
    return Finding("operators", True, "ours, AVX-512 VNNI" if our_library() else theirs)


def _decoding() -> Finding:
    import av

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return Finding("video decoding", True, f"PyAV {av.__version__}, libavcodec {codec}")


def _gpu() -> Finding:
    from llamavid.runtime.tensorrt.device import found_gpu

    tegra = Path("/etc/nv_tegra_release")
    jetson = f"; Jetson, {tegra.read_text().splitlines()[0].lstrip('# ')}" if tegra.exists() else ""
    try:
        return Finding("GPU", True, found_gpu() + jetson)
    except DeviceError as error:
        return Finding("GPU", False, f"{error}{jetson}")


def _libraries() -> list[Finding]:
    """What can run engines."""
    from llamavid.runtime.tensorrt.library import TensorRt

    found = []
    for library in Library:
        try:
            found.append(Finding(library.product, True, f"{TensorRt(library).version}: runs engines"))
        except DeviceError as error:
            found.append(Finding(library.product, False, error.given))
    return found


def _engines(bundle: Bundle) -> list[Finding]:
    """Which of a bundle's engine sets would answer here."""
    from llamavid.runtime.tensorrt.choosing import examined

    sets = examined(bundle)
    if not sets:
        return [Finding("engines", True, "none: the CPU answers. `llamavid build` makes some")]
    usable = "usable: compared with the model on this device"
    return [Finding(f"engines {name}", why is None, why or usable) for name, why in sets.items()]


def _extra(name: str) -> Finding:
    packages, purpose = _EXTRAS[name]
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        return Finding(name, False, f'{purpose}: needs {", ".join(absent)}; pip install "llamavid[{name}]"')
    return Finding(
        name,
        True,
        f"{purpose}: " + ", ".join(f"{package} {metadata.version(package)}" for package in packages),
    )


def _size(count: int) -> str:
    """Of so many bytes: 8.3 MB, 9.20 GB."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _bundle(bundle: Bundle) -> list[Finding]:
    manifest = bundle.manifest
    language = manifest.model.language
    weights = sum(entry.size for entry in manifest.files.values())
    past = [spec for spec in manifest.graphs["llm"].contract.inputs if spec.name.startswith("past.")]
    token = sum(spec.dtype.numpy.itemsize for spec in past) * language.kv_heads * language.head_dim
    per_frame = manifest.model.tokens_per_frame
    frames = (language.context_length - 512) // per_frame
    features = np.prod([1 + manifest.model.vision.patches, manifest.model.vision.width])
    itemsize = manifest.graphs["vision"].contract.spec("features").dtype.numpy.itemsize
    free = available_memory()
    precision = ", ".join(f"{name} {manifest.graphs[name].precision}" for name in GRAPHS)
    return [
        Finding("bundle", True, f"{bundle.folder}: sound, {_size(weights)}; {precision}"),
        Finding(
            "bundle memory",
            free is None or 2 * weights < free,
            f"about {_size(weights)} to {_size(2 * weights)} of weights, "
            f"{token / 2**10:.0f} KiB a token, {features * itemsize / 2**20:.2f} MiB a frame",
        ),
        Finding(
            "bundle context",
            True,
            f"{language.context_length} tokens: some {frames} frames of {per_frame} tokens",
        ),
    ]
