"""build: engines of a bundle for one target or several, or packages to build them elsewhere."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.building_llm import build_llm
from llamavid.commands.quantities import ByteSize
from llamavid.console import Progress, error_line, remark

if TYPE_CHECKING:
    from llamavid.bundle import Bundle
    from llamavid.engines import Device
    from llamavid.export.job import BuildOptions
    from llamavid.export.site import Site
    from llamavid.targets import Target


OURS, TENSORRT_LLM = "engine", "tensorrt-llm"


class Triple(click.ParamType):
    """`1,8,32`: smallest, usual, largest."""

    name = "min,usual,max"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):  # a default
            return value
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
            self.fail(f"{value!r} is not three numbers like 1,8,32", parameter, context)
        return int(parts[0]), int(parts[1]), int(parts[2])


class EnginesOrVicuna(click.Command):
    """`build --llm tensorrt-llm CHECKPOINT ...` is `export-llm CHECKPOINT ...`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        for words in (["--llm", TENSORRT_LLM], [f"--llm={TENSORRT_LLM}"]):
            for at in range(len(args) - len(words) + 1):
                if args[at : at + len(words)] == words:
                    rest = args[:at] + args[at + len(words) :]
                    return build_llm.make_context(info_name, rest, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=EnginesOrVicuna)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--llm",
    type=click.Choice([OURS, TENSORRT_LLM]),
    default=OURS,
    show_default=True,
    expose_value=False,
    help="What runs the language model; tensorrt-llm takes a CHECKPOINT and is `llamavid export-llm`.",
)
@click.option(
    "--target", "targets", multiple=True, required=True, help="Which device; 'this' is the GPU here."
)
@click.option("--graph", "graphs", multiple=True, help="vision, content, context or llm alone; repeatable.")
@click.option("--frames", type=Triple(), default=(1, 8, 32), help="Frames in one run.  [default: 1,8,32]")
@click.option("--prefill", default=512, show_default=True, help="Tokens read at once.")
@click.option("--cache", type=Triple(), help="Tokens kept; from 10.15 on the largest alone counts.")
@click.option("--workspace", type=ByteSize(), help="Memory that a layer may use beside its tensors.")
@click.option("--tf32", is_flag=True, help="Let float32 products round their factors to 10 bits.")
@click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT too; slower.")
@click.option("--hardware-compatible", is_flag=True, help="For GPUs after Ampere too; slower.")
@click.option("--force", is_flag=True, help="Build what could be taken over too.")
@click.option("--wait", is_flag=True, help="For another build of the same set, instead of failing.")
@click.option("--ignore-memory", is_flag=True, help="Try where memory seems too little.")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="Its file, instead of one per bundle.")
@click.option("--package", is_flag=True, help="Build nothing; write a folder to build elsewhere.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The package's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def build(
    bundle: Path,
    targets: tuple[str, ...],
    package: bool,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile a BUNDLE's graphs into TensorRT engines.

    They lie in BUNDLE/engines/TARGET. What is there and equal is not built again; an interrupted build goes
    on where it was. Where this machine cannot build for a target, it says why, writes a package (the bundle
    and one command) to build there, and ends with exit code 1.

    \b
    targets: a100 h200 orin-jp6 orin-jp7 thor rtx-sm75 rtx-sm80 rtx-sm86 rtx-sm89 rtx-sm120 this
    """
    from llamavid.bundle import open_bundle
    from llamavid.errors import UsageError
    from llamavid.export.site import why_not

    settings = _settings(options)
    if output is not None and len(targets) > 1:
        raise UsageError("-o with several targets", next_step="Leave it out, or build one at a time.")
    chosen = [named_target(name) for name in dict.fromkeys(targets)]
    opened = open_bundle(bundle)
    document: dict[str, Any] = {"sets": [], "packages": []}
    reasons = []
    for target in chosen:
        site = _site(target)
        why = why_not(target, site)
        if why or package:
            document["packages"].append(_package(opened, target, settings, output, why))
            reasons += [why] if not package else []
        elif output is not None:
            raise UsageError(
                f"-o {output}, but {target.name} is built here, in the bundle",
                next_step="Leave it out, or pass --package.",
            )
        else:
            document["sets"].append(_set(opened, target, settings, site.device, quiet=as_json))
    if as_json:
        click.echo(json.dumps(document))
    for made, why in zip(document["packages"], reasons, strict=False):
        error_line(f"{why}. {made['next']}")
    if not as_json:
        for made in (*document["sets"], *(document["packages"] if package else ())):
            click.echo(made["line"])
    if reasons:
        click.get_current_context().exit(1)


def _settings(options: dict[str, Any]) -> BuildOptions:
    from llamavid.export.job import BuildOptions
    from llamavid.export.profiles import Sizes

    workspace = options.pop("workspace")
    return BuildOptions(
        stages=options.pop("graphs"),
        sizes=Sizes(options.pop("frames"), options.pop("prefill"), options.pop("cache")),
        workspace_bytes=None if workspace is None else int(workspace),
        **options,
    )


def named_target(name: str) -> Target:
    """Raises `UsageError` for an unknown name, `DeviceError` where `this` is no GPU of ours."""
    import platform

    from llamavid.errors import DeviceError
    from llamavid.runtime.tensorrt.device import this_device
    from llamavid.targets import THIS, Library, find_target, target_of, version_of

    if name != THIS:
        return find_target(name)
    reasons = []
    for library in Library:
        try:
            device = this_device(library)
        except DeviceError as error:
            reasons.append(error)
        else:
            return target_of(device.capability, library, version_of(device.version), platform.machine())
    raise DeviceError(reasons[0].given, next_step="Name another --target, and build there.")


def _site(target: Target) -> Site:
    """This machine, as far as the target asks of it."""
    from llamavid.errors import DeviceError
    from llamavid.export.site import Site
    from llamavid.export.tensorrt_library import open_library
    from llamavid.runtime.tensorrt.device import this_device
    from llamavid.targets import Library

    library = target.library
    try:
        versions = {library: open_library(library).version}
    except DeviceError as error:
        return Site({}, {library: error.given}, None)
    if library is Library.TENSORRT_RTX:  # needs no GPU
        return Site(versions, {}, None)
    try:
        return Site(versions, {}, this_device(library))
    except DeviceError as error:
        return Site(versions, {}, None, no_device=error.given)


def _set(
    bundle: Bundle, target: Target, options: BuildOptions, device: Device | None, *, quiet: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from llamavid.export.job import Job
    from llamavid.export.tensorrt_library import open_library
    from llamavid.export.to_engine import build_engines

    start = time.monotonic()
    job = Job(bundle, target, open_library(target.library), options, device)
    with Progress(quiet=quiet) as progress:

        def say(line: str) -> None:
            if not quiet:
                progress.close()
                remark(line)

        outcome = build_engines(job, on_progress=progress.update, say=say)
    for engine in outcome.engines:
        how = f"{engine.seconds:.1f} s" if engine.built else "taken over"
        if not quiet:
            click.echo(f"{engine.stage:8} {engine.size / 1e6:10,.1f} MB  {how}")
    size = sum(engine.size for engine in outcome.engines)
    following = f"llamavid verify {shlex.quote(str(bundle.folder))} --target {target.name}"
    return {
        "target": target.name,
        "folder": str(outcome.folder),
        "engines": [asdict(engine) for engine in outcome.engines],
        "settings": outcome.manifest.settings,
        "seconds": round(outcome.seconds, 2),
        "next": following,
        "line": f"{outcome.folder}: {size / 1e6:,.1f} MB in {time.monotonic() - start:.1f} s. "
        f"Next: {following}",
    }


def _package(
    bundle: Bundle, target: Target, options: BuildOptions, output: Path | None, why: str
) -> dict[str, Any]:
    from llamavid.export.engine_plan import require_graphs
    from llamavid.export.package import write_package

    require_graphs(bundle, target, options)
    resolved = bundle.folder.resolve()
    folder = output or resolved.with_name(f"{resolved.name}-{target.name}.build")
    command = shlex.join(["llamavid", "build", ".", "--target", target.name, *_words(options)])
    write_package(bundle, target, folder, command=command)
    following = f"Copy {folder} to the {target.device} and run in it: {command}"
    return {
        "target": target.name,
        "folder": str(folder),
        "why": why,
        "command": command,
        "next": following,
        "line": following,
    }


def _words(options: BuildOptions) -> list[str]:
    """The options that are not the defaults, as they would be typed."""
    from llamavid.export.profiles import Sizes

    sizes, usual = options.sizes, Sizes()
    words = [word for stage in options.stages for word in ("--graph", stage)]
    if sizes.frames != usual.frames:
        words += ["--frames", ",".join(map(str, sizes.frames))]
    if sizes.prefill != usual.prefill:
        words += ["--prefill", str(sizes.prefill)]
    if sizes.cache is not None:
        words += ["--cache", ",".join(map(str, sizes.cache))]
    if options.workspace_bytes is not None:
        words += ["--workspace", str(options.workspace_bytes)]
    flags = ("tf32", "version_compatible", "hardware_compatible")
    return words + [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag)]
