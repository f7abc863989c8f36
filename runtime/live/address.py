"""What the user wrote, read as a camera, a network address, a pipeline or the standard input.

Note [Passwords]
    Addresses hold passwords and tokens. `Address.target` is for the decoder alone, which gets it through a
    pipe; what is shown, in messages, events and representations, is `Address.name`, without user, password
    and query. FFmpeg's own messages, which quote the address, are shown nowhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from llamavid.errors import UsageError

FORMS = (
    "a file, a folder of pictures, 'camera:0' or /dev/video0, rtsp://HOST/PATH, http://HOST/PATH, "
    "'gst: PIPELINE ! appsink', or - for the standard input"
)

NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https")
CAMERA = re.compile(r"camera:(?:(?P<number>[0-9]{1,3})|(?P<device>/dev/[^\s]+))")
SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)


class AddressKind(Enum):
    CAMERA = "camera"
    NETWORK = "network"
    PIPELINE = "pipeline"
    PIPE = "pipe"


@dataclass(frozen=True)
class Address:
    """name: what may be shown. target: for the decoder: a device, an address, a pipeline; "" for a pipe."""

    kind: AddressKind
    name: str
    target: str = field(repr=False)

    @property
    def is_live(self) -> bool:
        return self.kind is not AddressKind.PIPE

    def without_secrets(self, text: str) -> str:
        """What someone else wrote about this address, to be shown."""
        shown = text.replace(self.target, self.name) if self.target else text
        return re.sub(r"://[^/\s@]*@", "://", shown)  # pipelines hold whole addresses


def read_address(spec: str) -> Address | None:
    """None where `spec` is the path of a file or folder.

    Raises:
        UsageError: it is an address of a kind that is not read, or not a whole one.
    """
    if spec == "-":
        return Address(AddressKind.PIPE, "the standard input", "")
    if spec.startswith("gst:"):
        return _pipeline(spec)
    if spec.startswith("camera:") or re.fullmatch(r"/dev/video[0-9]+", spec):
        return _camera(spec)
    match = SCHEME.fullmatch(spec)
    return _network(match["scheme"].lower(), match["rest"]) if match else None


def _pipeline(spec: str) -> Address:
    pipeline = spec.removeprefix("gst:").strip()
    if not pipeline or "\0" in pipeline:
        raise UsageError(f"{spec!r} names no pipeline", expected="'gst: nvarguscamerasrc ! ... ! appsink'")
    elements = [element.strip() for element in pipeline.split("!")]
    if elements[-1].split()[:1] == ["appsink"]:
        elements.pop()  # ours goes there
    # A pipeline may hold an address with a password: its first element's kind has to do.
    return Address(
        AddressKind.PIPELINE,
        f"gst: {elements[0].split()[0] if elements[0] else ''} ! ...",
        " ! ".join(elements),
    )


def _camera(spec: str) -> Address:
    match = CAMERA.fullmatch(spec if spec.startswith("camera:") else f"camera:{spec}")
    if match is None:
        raise UsageError(f"{spec!r} names no camera", expected="'camera:0' or /dev/video0")
    device = match["device"] or f"/dev/video{int(match['number'])}"
    return Address(AddressKind.CAMERA, device, device)


def _network(scheme: str, rest: str) -> Address:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    if scheme not in NETWORK_SCHEMES:
        raise UsageError(f"addresses of {scheme}:// are not read", expected=FORMS)
    # An @ further on is a password with a / in it, more likely than not: nothing of it is shown.
    path = rest[len(authority) :]
    if not host or "@" in path or re.search(r"[\x00-\x20\x7f]", rest):
        raise UsageError(
            f"{scheme}://... is no whole address",
            expected=f"{scheme}://USER:PASSWORD@HOST:PORT/PATH",
            next_step="Write / as %2F, @ as %40, ? as %3F and a space as %20 in a name or password.",
        )
    shown = re.split(r"[?#]", path, maxsplit=1)
    name = f"{scheme}://{host}{shown[0]}" + ("?..." if len(shown) > 1 else "")
    return Address(AddressKind.NETWORK, name, f"{scheme}://{rest}")
