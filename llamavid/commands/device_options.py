"""--on and --allow-cpu: what runs a bundle. Shared by every command that asks one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def device_options(command: Command) -> Command:
    """The options `on: str | None` and `allow_cpu: bool`."""
    for option in (
        click.option(
            "--allow-cpu", is_flag=True, help="Where the bundle's engines cannot be used, say so and go on."
        ),
        click.option(
            "--on",
            help="cpu, this (the GPU here), or an engine set's target, such as a100. Left out: the GPU here "
            "for a bundle with engines, otherwise the CPU.",
        ),
    ):
        command = option(command)
    return command
