"""Runs a graph: one method, whatever runs it.

    outputs = executor.run(inputs)

`OnnxExecutor` is ONNX Runtime on the CPU. Its provider is asserted: what was asked
for runs, or opening fails. Buffers that a graph updates in place (the key-value
cache) are shared with it once and never copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from llamavid.contract import GraphContract, TensorSpec
from llamavid.errors import BundleError, DeviceError
from llamavid.runtime.kernels import Kernels, our_library, with_kernels

Tensors = Mapping[str, npt.NDArray[Any]]

_CPU = "CPUExecutionProvider"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# GELU with its bias in one operator takes longer than the two, which give the same bits: benchmarks/NOTES.md.
_SLOWER = ["BiasGeluFusion"]
_FATAL_ONLY = 3  # ONNX Runtime's own lines on stderr; ours say what to do


class Executor(Protocol):
    """What runs one graph."""

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Inputs by the contract's names -> outputs by the contract's names."""
        ...


class OnnxExecutor:
    """One ONNX graph on the CPU. One thread may run it at a time."""

    def __init__(
        self,
        file: Path,
        contract: GraphContract,
        *,
        threads: int | None = None,
        exact_int4: bool = False,
        kernels: Kernels = Kernels.BEST,
    ) -> None:
        """Loads the graph.

        Args:
            threads: of one operation; None lets ONNX Runtime choose the physical cores.
            exact_int4: multiply int4 weights by float32 activations, as PyTorch would, instead of by
                activations rounded to int8, which is several times faster.
            kernels: whose operators run what is marked in the graph.

        Raises:
            BundleError: the graph cannot be loaded, or is not what the contract says.
            DeviceError: the CPU provider is not there.
        """
        self._session = open_session(file, threads=threads, exact_int4=exact_int4, kernels=kernels)
        _check_contract(file, contract, self._session)
        self._contract = contract
        self._binding = self._session.io_binding()
        self._buffers: dict[str, npt.NDArray[Any]] = {}  # by the input that each is
        self._bound_outputs: list[str] = []  # in the order that ONNX Runtime returns them
        self._fresh_outputs = [spec.name for spec in contract.outputs]

    def share(self, source: str, target: str | None, buffer: npt.NDArray[Any]) -> None:
        """Makes `buffer` the input `source`, and the output `target` if there is one, of every run to come.

        Kept alive here until a second call replaces it.
        """
        value = ort.OrtValue.ortvalue_from_numpy(buffer)  # wraps the memory, does not copy it
        self._buffers[source] = buffer  # ONNX Runtime 1.23 does not keep it
        self._binding.bind_ortvalue_input(source, value)
        if target is None:
            return
        self._binding.bind_ortvalue_output(target, value)
        if target in self._fresh_outputs:
            self._fresh_outputs.remove(target)
            self._bound_outputs.append(target)

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Every input that is not shared -> every output that is not shared."""
        fresh = [spec for spec in self._contract.inputs if spec.name not in self._buffers]
        arrays = {spec.name: _checked(spec, inputs) for spec in fresh}  # alive until the run is over
        for name, array in arrays.items():
            self._binding.bind_cpu_input(name, array)
        for name in self._fresh_outputs:
            self._binding.bind_output(name)
            if name not in self._bound_outputs:
                self._bound_outputs.append(name)
        self._session.run_with_iobinding(self._binding)
        values = dict(zip(self._bound_outputs, self._binding.get_outputs(), strict=True))
        return {name: values[name].numpy() for name in self._fresh_outputs}


def open_session(
    file: Path | bytes,
    *,
    threads: int | None = None,
    exact_int4: bool = False,
    profile_prefix: Path | None = None,
    kernels: Kernels = Kernels.BEST,
) -> ort.InferenceSession:
    """An ONNX file, or its bytes, on the CPU. Arguments and errors are those of `OnnxExecutor`.

    profile_prefix: where ONNX Runtime's `end_profiling` writes the times of nodes.
    """
    options = ort.SessionOptions()
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_prefix)
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact_int4 else "4")
    name = "a graph" if isinstance(file, bytes) else str(file)
    try:
        given = _given(file, kernels, options, exact_int4)
        session = ort.InferenceSession(given, options, providers=[_CPU], disabled_optimizers=_SLOWER)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        raise BundleError(
            f"{name} cannot be loaded by ONNX Runtime {ort.__version__} ({str(error).splitlines()[0]})",
            next_step="Make the bundle again with `llamavid export`.",
        ) from error
    if session.get_providers()[0] != _CPU:
        raise DeviceError(f"ONNX Runtime runs {session.get_providers()}", expected=_CPU)
    return session


def _given(
    file: Path | bytes, kernels: Kernels, options: ort.SessionOptions, exact_int4: bool
) -> str | bytes:
    """The file's path, or its bytes where kernels were put in, and where those and its weights are found."""
    text = file if isinstance(file, bytes) else file.read_bytes()
    changed = with_kernels(text, kernels, exact_int4=exact_int4)
    library = our_library()
    if library is not None:
        options.register_custom_ops_library(library)
    if changed is text:
        return text if isinstance(file, bytes) else str(file)
    if not isinstance(file, bytes):
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(file.resolve().parent))
    return changed


def _checked(spec: TensorSpec, inputs: Tensors) -> npt.NDArray[Any]:
    """The input that `spec` asks for. A mismatch is our own mistake, so these are assertions."""
    array = inputs[spec.name]
    assert array.dtype == spec.dtype.numpy, (
        f"{spec.name} is {array.dtype}, the contract says {spec.dtype.value}"
    )
    fits = len(array.shape) == len(spec.shape) and all(
        isinstance(dim, str) or dim == found for dim, found in zip(spec.shape, array.shape, strict=True)
    )
    assert fits, f"{spec.name} is {array.shape}, the contract says {spec.shape}"
    return np.ascontiguousarray(array)


def _check_contract(file: Path, contract: GraphContract, session: ort.InferenceSession) -> None:
    for kind, specs, found in (
        ("inputs", contract.inputs, session.get_inputs()),
        ("outputs", contract.outputs, session.get_outputs()),
    ):
        wanted, names = sorted(spec.name for spec in specs), sorted(node.name for node in found)
        if wanted != names:
            raise BundleError(f"{file} has {kind} {', '.join(names)}", expected=", ".join(wanted))
