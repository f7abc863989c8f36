"""The argument parser of this room's own commands (`python -m llamavid.train...`)."""

from __future__ import annotations

import argparse
from typing import NoReturn

from llamavid.errors import UsageError


class Parser(argparse.ArgumentParser):
    """A mistake is a `UsageError`, which the command prints as one line, and not a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next_step=f"See {self.prog} --help.")
