"""Every TensorRT name that we call exists in every version that we claim, without having them installed.

Attributes are read out of the source of the builder and the executor, and held against six released bindings:
10.3.0 (JetPack 6) to 11.4.0, and TensorRT-RTX. A name that not all have must be asked for with hasattr, or
getattr with a default, in the same function; behind one such question stand all names that come with the one
asked for.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.tensorrt_names import ALL, CLASSES, TOP

ROOT = Path(__file__).parent.parent.parent
FILES = [
    *(ROOT / "export" / f"{name}.py" for name in ("compilation", "refusals", "tensorrt_library")),
    *sorted((ROOT / "runtime" / "tensorrt").glob("*.py")),
]
# Where an attribute of these begins, it is TensorRT's module; `cuda.api` is CUDA's.
MODULES = {"module", "api"}
CUDA = {"cuda", "_cuda"}
# What Python's own values have.
PYTHON = {
    name
    for kind in (str, bytes, int, list, dict, set, tuple, memoryview, deque, Path, re.Match, type, OSError)
    for name in dir(kind)
} | {name for kind in (np.ndarray, np.ctypeslib, type(ctypes.Array)) for name in dir(kind)}


def versions_of(name: str) -> frozenset[str]:
    """Those in which some class has it."""
    return frozenset().union(*(members.get(name, frozenset()) for members in (TOP, *CLASSES.values())))


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    """The outermost ones: methods, and functions that are not inside another."""
    stack: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while stack:
        for child in ast.iter_child_nodes(stack.pop()):
            if isinstance(child, ast.FunctionDef):
                yield child
            else:
                stack.append(child)


def asked_for(function: ast.FunctionDef) -> list[frozenset[str]]:
    """Of every hasattr(x, "name") and getattr(x, "name", default): the versions with that name."""
    return [
        versions_of(call.args[1].value)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and (call.func.id, len(call.args)) in {("hasattr", 2), ("getattr", 3)}
        and isinstance(call.args[1], ast.Constant)
        and isinstance(call.args[1].value, str)
    ]


def is_module(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in MODULES
    return isinstance(node, ast.Attribute) and node.attr in MODULES and not is_cuda(node)


def is_cuda(node: ast.expr) -> bool:
    """Whether an attribute is of CUDA's bindings: `cuda.api.cudaMalloc`, `self._cuda.api...`."""
    while isinstance(node, ast.Attribute):
        node = node.value
        if isinstance(node, ast.Attribute) and node.attr in CUDA:
            return True
    return isinstance(node, ast.Name) and node.id in CUDA


def used(function: ast.FunctionDef) -> Iterator[tuple[str, frozenset[str] | None]]:
    """Each attribute and the versions that have it; None: it is not TensorRT's."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute) or is_cuda(node) or node.attr.startswith(("cuda", "__")):
            continue  # the second: enums of CUDA's that were given another name
        if is_module(node.value):  # module.BuilderFlag
            yield node.attr, TOP.get(node.attr, frozenset())
        elif isinstance(node.value, ast.Attribute) and is_module(node.value.value):  # module.BuilderFlag.TF32
            yield node.attr, CLASSES.get(node.value.attr, {}).get(node.attr, frozenset())
        else:
            yield node.attr, versions_of(node.attr) or None


@cache
def our_names() -> set[str]:
    """Every function, class, argument and field that we define."""
    names: set[str] = set()
    for folder in ("export", "runtime", "llamavid"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.AnnAssign | ast.Assign):
                    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                    names.update(name for target in targets for name in fields(target))
    return names


def fields(target: ast.expr) -> Iterator[str]:
    """Names that an assignment makes ours: `x`, `self.x`. What is set on another's object is not."""
    for node in target.elts if isinstance(target, ast.Tuple) else [target]:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


def imported_names(file: Path) -> set[str]:
    """What the modules hold that a file imports, and what the classes in these do."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
                names.update(name for holder in (module, *classes) for name in dir(holder))
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_name_exists_in_every_version_or_is_asked_for_first(file: Path) -> None:
    offenders = []
    for function in functions(file):
        asked = asked_for(function)
        for name, versions in used(function):
            if versions is None or versions == ALL:
                continue
            if not any(question and question <= versions for question in asked):
                offenders.append((function.name, name, f"not in {sorted(ALL - versions)}"))
    assert offenders == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_name_is_tensorrts_pythons_or_ours(file: Path) -> None:
    """A TensorRT name that is spelled wrong is nobody's."""
    known = PYTHON | our_names() | imported_names(file)
    strange = {
        name
        for function in functions(file)
        for name, versions in used(function)
        if versions is None and name not in known
    }
    assert strange == set()


def test_the_builder_uses_more_than_a_few_names() -> None:
    """Or the reading of the source has gone blind."""
    names = {name for f in functions(FILES[0]) for name, versions in used(f) if versions}
    assert {"build_serialized_network", "set_shape", "TF32", "AMPERE_PLUS", "parse", "decomposable"} <= names


def test_names_that_are_gone_in_11_are_known_as_such() -> None:
    assert CLASSES["BuilderFlag"]["FP16"] == {"10.3.0", "10.13", "10.16.1"}
    assert CLASSES["IBuilderConfig"]["set_compute_capability"] == {"rtx-1.7.1"}
