"""[BUNDLE] before a command's other arguments. Left out, the embedded tiny model works, and says so.

Note [Number of words]: it alone decides. `ask` has two words after BUNDLE: given two, they are these;
given three, the first is BUNDLE. What the words name is looked at to explain a mistake, never to choose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from llamavid.console import remark
from llamavid.embedded import WHAT_IT_KNOWS, default_bundle

Command = TypeVar("Command", bound=Callable[..., Any])


def bundle_then(**others: str) -> Callable[[Command], Command]:
    """The arguments `bundle: Path | None` and, as str, each of `others`: parameter="ITS NAME IN HELP"."""

    def take(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> None:
        if not context.resilient_parsing:
            bundle, *rest = _sorted_out(words, list(others.values()), context)
            context.params["bundle"] = None if bundle is None else Path(bundle)
            context.params.update(zip(others, rest, strict=True))

    metavar = " ".join(["[BUNDLE]", *others.values()])
    return click.argument("words", nargs=-1, metavar=metavar, expose_value=False, callback=take)


def chosen_bundle(bundle: Path | None) -> Path:
    """`bundle`, or the embedded one with a remark. Raises `BundleError` where that is not there."""
    if bundle is not None:
        return bundle
    found = default_bundle()
    remark(f"The embedded tiny model answers: {WHAT_IT_KNOWS}. Pass a BUNDLE for real videos.")
    return found


def _sorted_out(words: Sequence[str], names: list[str], context: click.Context) -> list[str | None]:
    """BUNDLE or None, then a word for each of `names`. See Note [Number of words]."""
    if len(words) == len(names) and not is_bundle(words[0]):
        return [None, *words]
    if len(words) == len(names) + 1:
        return list(words)
    if len(words) > len(names):
        raise click.UsageError(
            f"{len(words)} arguments; expected {' '.join(names)}, or BUNDLE before them. "
            "Put a question of several words in quotes.",
            context,
        )
    bundle_is_first = bool(words) and is_bundle(words[0])
    missing = names[len(words) - bundle_is_first]
    why = f" after the bundle {words[0]}" if bundle_is_first else ""
    raise click.UsageError(f"Missing argument '{missing}'{why}.", context)


def is_bundle(word: str) -> bool:
    """Whether the word names a folder with a manifest."""
    from llamavid.bundle import MANIFEST

    return os.path.isfile(os.path.join(word, MANIFEST))  # unlike Path.is_file, no error for a long word
