"""A bundle vouches for every byte, or does not open; making one leaves all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.bundle import (
    EMBEDDINGS,
    GRAPHS,
    LANGUAGE_TOKENIZER,
    MANIFEST,
    QUESTION_VOCABULARY,
    open_bundle,
    staged_folder,
)
from llamavid.errors import BundleError
from llamavid.golden import GOLDEN

FILES = [
    *(f"{graph}.onnx{part}" for graph in GRAPHS for part in ("", ".data")),
    *("llm.static.onnx", "llm.primitive.onnx"),  # whose weights are llm's
    EMBEDDINGS,
    LANGUAGE_TOKENIZER,
    QUESTION_VOCABULARY,
    GOLDEN,
]


@pytest.fixture
def bundle(short_bundle: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(short_bundle, tmp_path / "bundle")


def refusal(folder: Path) -> BundleError:
    """Why the bundle does not open: one line that names it and says what to do."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)
    assert caught.value.next_step
    return caught.value


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the manifest as JSON."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


# Every byte.


def test_a_sound_bundle_opens_and_lists_every_file(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert sorted(opened.manifest.files) == sorted(FILES)
    assert all(opened.path(name) == bundle / name for name in FILES)
    with pytest.raises(BundleError, match="lists no secrets"):
        opened.path("secrets")


def test_a_bundle_that_was_moved_keeps_its_identity(bundle: Path) -> None:
    before = open_bundle(bundle)
    after = open_bundle(bundle.rename(bundle.with_name("elsewhere")))
    assert after.digest == before.digest


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_found(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert f"{bundle / name} has sha256" in str(refusal(bundle))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"{bundle / name} is missing" in str(refusal(bundle))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named_with_both_sizes(bundle: Path, name: str) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size - 1)
    assert f"{bundle / name} has {size - 1} bytes; expected {size}" in str(refusal(bundle))


def test_a_folder_in_the_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / QUESTION_VOCABULARY).unlink()
    (bundle / QUESTION_VOCABULARY).mkdir()
    refusal(bundle)


def test_a_bundle_of_format_1_opens(bundle: Path) -> None:
    """It had one language graph, and no graph named its weights."""

    def earlier(manifest: Any) -> None:
        manifest["format_version"] = 1
        for graph in ("llm.static", "llm.primitive"):
            del manifest["graphs"][graph], manifest["files"][f"{graph}.onnx"]
        manifest["parity"] = [row for row in manifest["parity"] if row["graph"] in GRAPHS]
        for entry in manifest["graphs"].values():
            del entry["weights"]

    edit(bundle, earlier)
    opened = open_bundle(bundle)
    assert sorted(opened.manifest.graphs) == sorted(GRAPHS)
    assert opened.manifest.graphs["llm"].weights_file == "llm.onnx.data"


def test_weights_that_a_graph_names_must_be_vouched_for(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["graphs"]["llm.static"].update(weights="other.data"))
    assert "other.data" in str(refusal(bundle))


@pytest.mark.parametrize("graph", ["llm.static", "llm.primitive"])
def test_a_graph_to_build_engines_of_was_compared_too(bundle: Path, graph: str) -> None:
    def forgotten(manifest: Any) -> None:
        manifest["parity"] = [row for row in manifest["parity"] if row["graph"] != graph]

    edit(bundle, forgotten)
    assert graph in str(refusal(bundle))


# Paths stay inside.


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "graphs/../../outside",
        "..",
        ".",
        "",
        "C:\\outside",
        "null\0character",
        "two\nlines",
        "lone surrogate \ud800",
        "long" * 100,
        f"{QUESTION_VOCABULARY}/inside a file",
    ],
    ids=lambda name: ascii(name)[:24],
)
def test_a_name_that_is_no_file_of_the_bundle_is_refused(bundle: Path, name: str) -> None:
    edit(bundle, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    refusal(bundle)


@pytest.mark.parametrize("target", ["outside", QUESTION_VOCABULARY], ids=["out of the bundle", "in a circle"])
def test_a_link_that_leads_to_no_file_of_the_bundle_is_refused(bundle: Path, target: str) -> None:
    name = bundle / QUESTION_VOCABULARY
    shutil.copyfile(name, bundle.parent / "outside")
    name.unlink()
    name.symlink_to(bundle.parent / target if target == "outside" else target)
    refusal(bundle)


def test_a_bundle_behind_a_link_opens(bundle: Path) -> None:
    link = bundle.with_name("link")
    link.symlink_to(bundle)
    open_bundle(link)


# The manifest.


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (3, "Upgrade llamavid"),
        (10**400, "Upgrade llamavid"),
        (0, "llamavid export"),
        (-1, "llamavid export"),
        (1.0, "llamavid export"),
        (True, "llamavid export"),
        (None, "llamavid export"),
        ("1", "llamavid export"),
        ([1], "llamavid export"),
    ],
    ids=lambda value: repr(value)[:16],
)
def test_another_format_version_is_refused_with_advice(bundle: Path, version: Any, advice: str) -> None:
    edit(bundle, lambda manifest: manifest.update(format_version=version))
    assert advice in refusal(bundle).next_step


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe not text",
        b"manifest: yaml",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"format_version": 1, "model": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format_version": ' + b"1" * 5000 + b"}",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_manifest_that_is_not_one_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / MANIFEST).write_bytes(text)
    assert str(bundle / MANIFEST) in str(refusal(bundle))


def test_a_huge_manifest_is_refused(bundle: Path) -> None:
    os.truncate(bundle / MANIFEST, 1 << 30)
    assert "bytes" in str(refusal(bundle))


@pytest.mark.parametrize(
    "where",
    [
        ("model",),
        ("files",),
        ("parity",),
        ("graphs", "context"),
        ("graphs", "vision", "contract", "inputs"),
        ("model", "language", "hidden"),
        ("model", "text_decoder", "kind"),
    ],
    ids=".".join,
)
@pytest.mark.parametrize("damage", ["missing", "mistyped"])
def test_a_damaged_field_is_named(bundle: Path, where: tuple[str, ...], damage: str) -> None:
    *owners, field = where

    def change(manifest: Any) -> None:
        for owner in owners:
            manifest = manifest[owner]
        if damage == "missing":
            del manifest[field]
        else:
            manifest[field] = "no such thing"

    edit(bundle, change)
    problem = str(refusal(bundle))
    assert str(bundle / MANIFEST) in problem
    assert field in problem or "no such thing" in problem


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("model", "language", "norm_eps"), 10**400),  # an OverflowError, once
        (("model", "language", "rope_theta"), float("nan")),
        (("model", "language", "context_length"), 10**400),
        (("model", "preprocessing", "mean"), [0.5, float("inf"), 0.5]),
        (("model", "preprocessing", "std"), [0.5, 0.0, 0.5]),
        (("model", "preprocessing", "image_size"), 10),
        (("model", "vision", "patch_size"), 10_000),  # no patches: a division by zero, once asked
        (("model", "pool_grid"), 10_000),
        (("graphs", "llm", "contract", "inputs", 0, "dims"), ["9" * 5000]),  # which int() refuses to read
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_number_that_no_model_has_is_refused(bundle: Path, where: tuple[Any, ...], value: object) -> None:
    def change(manifest: Any) -> None:
        *owners, field = where
        for owner in owners:
            manifest = manifest[owner]
        manifest[field] = value

    edit(bundle, change)
    assert str(bundle / MANIFEST) in str(refusal(bundle))


def test_an_unknown_field_is_named_in_one_line(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update({"sur\nprise": 1}))
    assert "prise" in str(refusal(bundle))


def test_a_manifest_s_own_words_are_shown_in_one_line(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["built_with"].update({"sur\nprise \x1b[2J": 1}))
    assert "prise" in str(refusal(bundle))
    (bundle / MANIFEST).write_bytes(b'{"format_version": "' + b"\xff" * 10_000)
    assert len(str(refusal(bundle))) < 2000


@pytest.mark.parametrize("unlisted", [name for name in FILES if name != GOLDEN])
def test_a_file_that_the_runtime_reads_must_be_vouched_for(bundle: Path, unlisted: str) -> None:
    edit(bundle, lambda manifest: manifest["files"].pop(unlisted))
    assert unlisted in str(refusal(bundle))


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "file"])
def test_what_is_not_a_bundle_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("a checkpoint?")
    assert "llamavid export" in refusal(path).next_step


@pytest.fixture(scope="module")
def scratch_bundle(short_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose manifest is overwritten again and again."""
    return shutil.copytree(short_bundle, tmp_path_factory.mktemp("scratch") / "bundle")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(draws=st.data(), value=ANY_JSON, name=st.none() | st.text())
def test_whatever_the_manifest_says_is_accepted_or_refused_in_one_line(
    short_bundle: Path, scratch_bundle: Path, draws: st.DataObject, value: Any, name: str | None
) -> None:
    manifest = json.loads((short_bundle / MANIFEST).read_text())
    *owners, key = draws.draw(st.sampled_from(list(places(manifest))), label="place")
    inner = manifest
    for owner in owners:
        inner = inner[owner]
    if name is not None and isinstance(inner, dict):
        inner[name] = inner.pop(key)
    else:
        inner[key] = value
    (scratch_bundle / MANIFEST).write_text(json.dumps(manifest))
    problem = ""
    try:
        open_bundle(scratch_bundle)
    except BundleError as error:
        problem = str(error)
    assert len(problem.splitlines()) <= 1


# Making one: all or nothing.

BEGUN = AssertionError("the work was begun")


def make(
    target: Path, words: str = "new", *, replace: bool = False, failure: BaseException | None = None
) -> None:
    """Makes a folder that passes for a bundle; `failure` ends the work half-way."""
    with staged_folder(target, replace=replace) as stage:
        assert stage.parent == target.resolve().parent  # the same file system: renaming is all there is to do
        (stage / MANIFEST).write_text('{"format_version": 1}')
        if failure:
            raise failure
        (stage / "words").write_text(words)


def test_a_finished_stage_becomes_the_target(tmp_path: Path) -> None:
    target = tmp_path / "made on the way" / "bundle"
    make(target)
    assert os.listdir(target.parent) == ["bundle"]
    assert (target / "words").read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_stage_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure):
        make(tmp_path / "bundle", failure=failure())
    assert os.listdir(tmp_path) == []


def test_a_stage_that_fails_leaves_the_bundle_it_was_to_replace(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make(target, "old")
    with pytest.raises(KeyboardInterrupt):
        make(target, replace=True, failure=KeyboardInterrupt())
    assert os.listdir(tmp_path) == ["bundle"]
    assert (target / "words").read_text() == "old"


def test_an_interruption_between_the_two_renames_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename, told = tmp_path / "bundle", Path.rename, list[Path]()
    make(target, "old")

    def interrupted_once(self: Path, place: Path) -> Path:
        told.append(place)
        if len(told) == 2:
            raise KeyboardInterrupt
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        make(target, replace=True)
    assert os.listdir(tmp_path) == ["bundle"]
    assert (target / "words").read_text() == "old"


def test_an_existing_bundle_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make(target, "old")
    with pytest.raises(BundleError, match="--replace"):
        make(target, failure=BEGUN)
    assert (target / "words").read_text() == "old"
    make(target, replace=True)
    assert os.listdir(tmp_path) == ["bundle"]
    assert (target / "words").read_text() == "new"


@pytest.mark.parametrize("manifest", [None, '{"name": "a web app"}', "[]", "not JSON"])
def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    """manifest.json is a common name, every web app has one: `--replace` once deleted such a folder."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis").write_text("years of work")
    if manifest:
        (target / MANIFEST).write_text(manifest)
    with pytest.raises(BundleError, match="not a bundle"):
        make(target, replace=True, failure=BEGUN)
    assert (target / "thesis").read_text() == "years of work"


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        make(target, replace=True, failure=BEGUN)
    assert target.read_text() == "years of work"


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "bundle", tmp_path / "link"
    make(real, "old")
    link.symlink_to(real)
    make(link, replace=True)
    assert link.is_symlink()
    assert os.listdir(real.parent) == ["bundle"]
    assert (real / "words").read_text() == "new"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        make(tmp_path / "file" / "bundle", failure=BEGUN)
