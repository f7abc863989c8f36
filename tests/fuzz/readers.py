"""Everything that reads a file which others wrote, as a function of its bytes: what the fuzzers call.

A reader either reads, or says in one line why not, by the one error that it documents. `check` holds it to
that: no other exception, nothing opened outside the folder, no line that a terminal would take as a command.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.bundle import MANIFEST, open_bundle
from llamavid.commands.profile_table import print_comparison
from llamavid.config import Preprocessing
from llamavid.errors import BundleError, CheckpointError, LlamaVidError, SourceError, UsageError
from llamavid.feature_file import is_feature_file, read_features
from llamavid.model.dimensions import model_config, preprocessing_from_file
from llamavid.model.tensor_files import read_json
from llamavid.runtime.profile.comparing import compare
from llamavid.runtime.profile.document import read_profile
from llamavid.subtitles import read_subtitles, subtitle_of_each_frame
from llamavid.train.movie_pickles import movie_from_pickle

MAX_LINE = 2000  # characters of an error; a file's words are quoted in part
CORPUS = Path(__file__).parent / "corpus"

# The files of a bundle whose bytes do not matter here: opening looks at sizes and hashes alone.
BUNDLE_FILES = {
    name: name.encode()
    for name in (
        *(
            f"{graph}.onnx{part}"
            for graph in ("vision", "content", "context", "llm")
            for part in ("", ".data")
        ),
        *("embeddings.npy", "tokenizer.model", "vocab.txt"),
    )
}


@dataclass(frozen=True)
class Reader:
    """read: of a file's bytes, in an empty folder of its own. error: the one that it may raise."""

    read: Callable[[Path], object]
    file: str
    error: type[LlamaVidError]
    beside: Callable[[Path], None] = lambda folder: None
    is_json: bool = False


def check(reader: Reader, data: bytes, folder: Path) -> str:
    """`data` to the reader; gives what it says, "" when it read. Raises what must not happen."""
    file = folder / reader.file
    file.write_bytes(data)
    said = ""
    with _nothing_opened_outside(folder):
        try:
            reader.read(file)
        except reader.error as error:
            said = str(error)
            assert said.isprintable(), f"not one line of text: {said!r}"
            assert len(said) <= MAX_LINE, f"{len(said)} characters: {said[:200]!r}"
    return said


def manifest_opened(file: Path) -> None:
    """And whatever is worked out from it before a file of the bundle is used."""
    bundle = open_bundle(file.parent)
    model = bundle.manifest.model
    assert model.tokens_per_frame > 0
    assert model.content_tokens <= model.vision.patches
    for graph in bundle.manifest.graphs.values():
        for spec in (*graph.contract.inputs, *graph.contract.outputs):
            assert isinstance(spec.shape, tuple)
    for name in bundle.manifest.files:
        assert file.parent.resolve() in bundle.path(name).resolve().parents


def stand_in_bundle(folder: Path) -> None:
    """The files that `corpus/manifest/sound` vouches for."""
    for name, data in BUNDLE_FILES.items():
        (folder / name).write_bytes(data)


def features_read(file: Path) -> None:
    is_feature_file(file)  # says yes or no, of whatever bytes
    read_features(file)


def subtitles_read(file: Path) -> None:
    found = read_subtitles(file)
    said = subtitle_of_each_frame(found, [0.0, 1.0, 2.5, 60.0])
    assert len(said) == 4


def config_read(file: Path) -> None:
    """`config.json` of a checkpoint, with the tensors of a small one."""
    constants = Preprocessing(28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), pad_pictures=False)
    model_config(read_json(file, "a config"), _SHAPES, constants, file.parent / "no bert")


def profile_read(file: Path) -> None:
    """And compared with itself: nothing differs."""
    profile = read_profile(file)
    comparison = compare(profile, profile)
    assert not comparison.unlike
    print_comparison(comparison, "a.json", "b.json")


def constants_read(file: Path) -> None:
    preprocessing_from_file({}, file)


_SHAPES = {
    "vision.patch_embed.proj.weight": (88, 3, 14, 14),
    "vision.pos_embed": (1, 5, 88),
    "vision.blocks.0.mlp.fc1.weight": (176, 88),
    "text_decoder.word_embeddings.weight": (100, 64),
    "text_decoder.queries": (1, 4, 64),
    "text_decoder.layers.0.feed_forward.up.weight": (128, 64),
    "text_decoder.position_embeddings.weight": (64, 64),
    "text_decoder.layers.0.cross_attention.key.weight": (64, 88),
    "compressor.content_projector.0.weight": (64, 88),
    "language.model.layers.0.mlp.up_proj.weight": (128, 64),
}
READERS = {
    "manifest": Reader(manifest_opened, MANIFEST, BundleError, stand_in_bundle, is_json=True),
    "features": Reader(features_read, "movie.safetensors", SourceError),
    "subtitles": Reader(subtitles_read, "movie.srt", UsageError),
    "config": Reader(config_read, "config.json", CheckpointError, is_json=True),
    "preprocessor": Reader(constants_read, "preprocessor_config.json", CheckpointError, is_json=True),
    "profile": Reader(profile_read, "profile.json", UsageError, is_json=True),
    "pickle": Reader(movie_from_pickle, "movie.pkl", SourceError),
}


# What is opened while one reader reads.

_watched: list[Path] = []


@contextlib.contextmanager
def _nothing_opened_outside(folder: Path) -> Iterator[None]:
    if not _hooked:
        sys.addaudithook(_on_event)  # for good: there is no way to take one away
        _hooked.append(True)
    _watched.append(folder.resolve())
    try:
        yield
    finally:
        _watched.pop()


_hooked: list[bool] = []


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = Path(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()).resolve()
    is_python_s_own = path.suffix in (".py", ".pyc") or Path(sys.prefix) in path.parents
    if _watched[-1] not in path.parents and not is_python_s_own:
        raise AssertionError(f"{path} was opened")
