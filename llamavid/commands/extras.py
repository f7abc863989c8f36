"""What a command needs beyond the base install, asked before its work begins."""

from __future__ import annotations


def require_extra(extra: str, *packages: str) -> None:
    from importlib.util import find_spec

    from llamavid.errors import DeviceError

    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise DeviceError(
            f"{', '.join(absent)} not installed", next_step=f'Run: pip install "llamavid[{extra}]".'
        )
