"""Every error this project raises on purpose.

    LlamaVidError
    ├── UsageError          the command or call was typed wrong           (exit 2)
    ├── CheckpointError     a checkpoint is missing, damaged or unlike its config
    ├── BundleError         a bundle is missing, damaged, newer or unsafe
    ├── SourceError         a video or picture cannot be read
    ├── PromptError         a question is empty or does not fit the model  (exit 2)
    ├── ScalesError         scales.json is missing, damaged or of another checkpoint
    ├── ParityError         a graph does not agree with the PyTorch model
    └── DeviceError         this machine lacks what was asked for

Each one says what was given, what was expected and what to do next; the
command line prints that as one line and never a traceback.
"""

from __future__ import annotations

MAX_PART = 600  # characters of a part of an error


class LlamaVidError(Exception):
    """Base of the tree.

    Args:
        given: what was found, naming the file, tensor or value.
        expected: what would have been right. May be empty when `given` says it.
        next_step: what the user can do now.
    """

    exit_code = 1

    def __init__(self, given: str, *, expected: str = "", next_step: str = "") -> None:
        self.given, self.expected, self.next_step = given, expected, next_step
        sentence = _shown(given) + (f"; expected {_shown(expected)}" if expected else "")
        super().__init__(sentence + (f". {_shown(next_step)}" if next_step else ""))


def _shown(text: str) -> str:
    """`text` as part of one line, short, that a terminal takes as nothing but text: a file's own words may
    be in it."""
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= MAX_PART else f"{text[: MAX_PART // 2]} ... {text[-MAX_PART // 2 :]}"


class UsageError(LlamaVidError):
    """The command or call was typed wrong."""

    exit_code = 2


class CheckpointError(LlamaVidError):
    """A checkpoint is missing, damaged or unlike its config."""


class BundleError(LlamaVidError):
    """A bundle is missing, damaged, of a newer format or unsafe to open."""


class SourceError(LlamaVidError):
    """A video or picture cannot be read."""


class PromptError(LlamaVidError):
    """A question is empty or does not fit the model."""

    exit_code = 2


class ScalesError(LlamaVidError):
    """scales.json is missing, damaged, or made for another checkpoint or format."""


class ParityError(LlamaVidError):
    """An exported graph does not agree with the PyTorch model."""


class DeviceError(LlamaVidError):
    """This machine lacks what was asked for."""
