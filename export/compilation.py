"""One graph becomes one engine: network, parser, profiles, configuration, plan.

    compiled(trt, "vision", file, contract, profiles, settings).data

Precision comes from the graph alone (facts/deployment section 2), so there is no flag for it. Knows nothing
of bundles, targets and files that engines are kept in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.contract import DType, GraphContract, TensorSpec
from llamavid.engines import Profile
from llamavid.errors import BundleError, DeviceError, UsageError
from llamavid.export.fixed_length import graph_text
from llamavid.export.interruption import Interruption
from llamavid.export.refusals import Complaint, builder_refusal, parser_refusal
from llamavid.export.tensorrt_library import TensorRt
from llamavid.targets import Capability

RECIPE = 1  # raised by hand when other engines are built of the same: those of before are not taken over
OnStep = Callable[[str, int, int], None]  # phase, steps done, of how many


@dataclass(frozen=True)
class Settings:
    """What all engines of a set have in common.

    Args:
        capabilities: for which to build; several only with a library that builds for absent devices.
        workspace_bytes: that a layer may use while it runs; None leaves it to the library.
        tf32: whether float32 products may round their factors to 10 bits; a bundle in float32 means not.
    """

    capabilities: tuple[Capability, ...]
    workspace_bytes: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class Compiled:
    """An engine in memory."""

    data: Any  # the library's buffer: bytes-like
    timing_cache: bytes  # what was known and what this build measured; empty where there is none
    contract: GraphContract  # the graph's, and the outputs beyond it that were allowed


def compiled(
    trt: TensorRt,
    graph: str,
    file: Path,
    contract: GraphContract,
    profiles: tuple[Profile, ...],
    settings: Settings,
    *,
    fixed: dict[str, int] | None = None,
    marks: str | None = None,
    timing_cache: bytes = b"",
    on_step: OnStep = lambda phase, done, steps: None,
) -> Compiled:
    """Builds the graph in `file`, its weights beside it.

    Args:
        fixed: named dimensions that are numbers in the engine.
        marks: how the names of outputs begin that may be there beyond the contract, in float32.

    Raises:
        UsageError: the library cannot build as `settings` say.
        BundleError: the file is no graph, or not the one of the contract.
        DeviceError: the library or the device cannot run it, with the operator or type.
        KeyboardInterrupt: the user has had enough.
    """
    require_settings(trt, settings)
    trt.errors.clear()
    builder = trt.module.Builder(trt.log)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, graph, file, network, fixed or {})
    _let_attention_be_taken_apart(trt, network)
    contract = _with_marks(network, contract, marks)
    _require_contract(trt, graph, network, contract)
    config = _configured(trt, builder, settings)
    for shapes in profiles:
        _add_profile(trt, graph, builder, config, shapes)
    if trt.has_timing_cache:
        _set_timing_cache(config, timing_cache)
    with Interruption() as interruption:
        config.progress_monitor = _monitor(trt, on_step, interruption)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise builder_refusal(trt, graph, trt.errors)
    measured = bytes(config.get_timing_cache().serialize()) if trt.has_timing_cache else b""
    return Compiled(plan, measured, contract)


def require_settings(trt: TensorRt, settings: Settings) -> None:
    """Raises `UsageError` where the library lacks what the settings ask for."""
    if settings.version_compatible and trt.is_rtx:
        raise UsageError(
            f"--version-compatible with {trt.label}, which builds for its own version only",
            next_step="Leave it out, or choose a target of TensorRT.",
        )
    if settings.hardware_compatible and trt.is_rtx:
        raise UsageError(
            f"--hardware-compatible with {trt.label}, which does not have it",
            next_step="Leave it out, or choose a target of TensorRT.",
        )
    if settings.hardware_compatible and settings.capabilities[0] < (8, 0):
        raise UsageError("--hardware-compatible", expected="compute capability 8.0 or later")


def merged_timing_caches(trt: TensorRt, theirs: bytes, ours: bytes) -> bytes:
    """Both measurements; ours alone where theirs are of another device or damaged."""
    config = trt.module.Builder(trt.log).create_builder_config()
    both, other = config.create_timing_cache(ours), config.create_timing_cache(theirs)
    if both is None or other is None or not both.combine(other, False):
        return ours
    return bytes(both.serialize())


def _network_flags(trt: TensorRt) -> int:
    """Types are the graph's. From 11 on there is no other kind of network."""
    return 1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: TensorRt, graph: str, file: Path, network: Any, fixed: dict[str, int]) -> None:
    parser = trt.module.OnnxParser(network, trt.log)
    if not parser.parse(graph_text(file, fixed), str(file)):  # weights are looked for beside the file
        complaints = [_complaint(parser, parser.get_error(i)) for i in range(parser.num_errors)]
        raise parser_refusal(trt, graph, complaints)


def _complaint(parser: Any, error: Any) -> Complaint:
    operator = error.node_operator()
    known = bool(operator) and parser.supports_operator(operator)
    return Complaint(error.code().name, error.desc(), error.node_name(), operator, known)


def _let_attention_be_taken_apart(trt: TensorRt, network: Any) -> None:
    """Where no one kernel does it (float32; some sizes of heads), several do instead of a build error.

    ONNX has no word for this, so the file cannot say it. Before 10.15 no layer of the kind exists.
    """
    if not hasattr(trt.module, "IAttentionOutputLayer"):
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.module.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.module.IAttentionOutputLayer  # it is handed out as its base
            layer.attention.decomposable = True


def _with_marks(network: Any, contract: GraphContract, marks: str | None) -> GraphContract:
    """Wider by the marks, with the shapes that the parser found; an open dimension gets a name."""
    if marks is None:
        return contract
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = tuple(
        TensorSpec(
            tensor.name,
            DType.FLOAT32,
            tuple(str(dim) if dim >= 0 else f"open {axis}" for axis, dim in enumerate(tensor.shape)),
        )
        for tensor in outputs
        if tensor.name.startswith(marks)
    )
    return GraphContract(contract.inputs, (*contract.outputs, *found))


def _require_contract(trt: TensorRt, graph: str, network: Any, contract: GraphContract) -> None:
    """The executor binds by the contract: the network must have its very boundary."""
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    tensors = {tensor.name: tensor for tensor in found}
    wanted = {spec.name: spec for spec in (*contract.inputs, *contract.outputs)}
    if tensors.keys() != wanted.keys():
        names = ", ".join(sorted(tensors.keys() ^ wanted.keys()))
        raise BundleError(f"graph {graph} and its contract differ in {names}")
    for name, spec in wanted.items():
        given = _type_name(tensors[name]), tuple(tensors[name].shape)
        if given[0] != spec.dtype.value or not _fits(given[1], spec):
            expected = f"{spec.dtype.value} {list(spec.shape)}"
            raise BundleError(f"graph {graph}: {name} is {given[0]} {list(given[1])}", expected=expected)


def _type_name(tensor: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    name = tensor.dtype.name
    return str(names.get(name, name.lower()))


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """A named dimension may be any, or open (-1)."""
    return len(shape) == len(spec.shape) and all(
        isinstance(wanted, str) or dim == wanted for dim, wanted in zip(shape, spec.shape, strict=True)
    )


def _configured(trt: TensorRt, builder: Any, settings: Settings) -> Any:
    module, config = trt.module, builder.create_builder_config()
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = len(settings.capabilities)
        for index, capability in enumerate(settings.capabilities):
            config.set_compute_capability(trt.capability(capability), index)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if not settings.tf32:
        config.clear_flag(module.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    # Names of layers are what a profile and a bisection are read by.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    return config


def _set_timing_cache(config: Any, known: bytes) -> None:
    """One that is damaged or of another device is refused; an empty one is not."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _add_profile(trt: TensorRt, graph: str, builder: Any, config: Any, shapes: Profile) -> None:
    profile = builder.create_optimization_profile()
    for name, smallest in shapes.smallest.items():
        profile.set_shape(name, smallest, shapes.tuned[name], shapes.largest[name])
    if config.add_optimization_profile(profile) < 0:
        raise DeviceError(f"graph {graph}: {trt.label} does not take the shapes of profile {shapes.name}")


def _monitor(trt: TensorRt, on_step: OnStep, interruption: Interruption) -> Any:
    """Tells `on_step` of the phase that was begun last, and ends the build where the user interrupts."""
    base = trt.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_step(phase_name, step + 1, self.steps.get(phase_name, 0))
            return not interruption.asked

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
