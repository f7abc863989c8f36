"""JSON to other JSON: a mutator for fuzzers, since damaged syntax alone is refused at the first look."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# What stands for a number, a name or a list where somebody means harm.
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 14, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.5, 1e308, 5e-324),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        "x",
        "x\ny",
        "\x1b[2J",
        "\0",
        "\ud800",
        "..",
        "../x",
        "/",
    ),
    *("/etc/passwd", "sub/x", "C:\\x", "y" * 5000, "9" * 5000, "٣", "²", "inf", "vocab.txt", "manifest.json"),
    *([], {}, [[]], [0] * 50, {"": 0}, {"sur\nprise": 1}, {"z" * 3000: {}}),
)


def json_mutated(data: bytes, random: Random) -> bytes | None:
    """A few changes at random places; None when `data` is no JSON."""
    try:
        document: Any = [json.loads(data)]
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _changed(document, random)
    try:
        text = json.dumps(document[0], ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return None
    if random.random() < 0.02:
        text = "[" * 100_000 + text
    return text.encode("utf-8", "surrogatepass")


def _changed(document: Any, random: Random) -> None:
    owner, key = random.choice(_places(document))
    act = random.randrange(6)
    if act == 0 and isinstance(owner, dict):
        owner[str(random.choice(VALUES))[:5000]] = owner.pop(key)
    elif act == 1 and (isinstance(owner, dict) or len(owner) > 1):
        del owner[key]
    elif act == 2:
        other_owner, other = random.choice(_places(document))
        owner[key] = copy.deepcopy(other_owner[other])
    elif act == 3 and isinstance(owner[key], (int, float)) and owner[key] == owner[key]:
        owner[key] = random.choice((-owner[key], owner[key] + 1, owner[key] * 1000, str(owner[key])))
    elif act == 4 and isinstance(owner[key], list) and len(owner[key]) < 100:
        owner[key] = copy.deepcopy(owner[key]) * random.choice((0, 2, 20))
    else:
        owner[key] = copy.deepcopy(random.choice(VALUES))


def _places(document: Any) -> list[tuple[Any, Any]]:
    found, ahead = [], [document]
    while ahead:
        owner = ahead.pop()
        items = list(owner.items() if isinstance(owner, dict) else enumerate(owner))
        found += [(owner, key) for key, _ in items]
        ahead += [value for _, value in items if isinstance(value, (dict, list))]
    return found or [(document, 0)]
