"""How this room's own commands (`python -m llamavid.train...`) parse, and how they fail."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from llamavid.console import error_line
from llamavid.errors import LlamaVidError, UsageError


class Parser(argparse.ArgumentParser):
    """A mistake is a `UsageError`, which the command prints as one line, and not a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next_step=f"See {self.prog} --help.")


def run_command(
    parser: Parser, act: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """Parses and acts; the exit code. What goes wrong is one line. `parser` has an option `output`."""
    try:
        options = parser.parse_args(arguments)
        act(options)
    except LlamaVidError as error:
        error_line(str(error))
        return error.exit_code
    except OSError as error:
        error_line(f"{error.filename or options.output}: {error.strerror or error}")
        return 1
    return 0
