"""The paper's Figure 6: frames with the attention of a question drawn over them, as one PNG.

    shown = shown_frames(source, evidence, places, preprocessing)
    write_png(drawing(shown, title="What color is the star?"), Path("heatmap.png"))

Takes an open source and the evidence about it; knows nothing about models. Drawn with Pillow alone.

Note [Where a patch lies]
    The encoder sees the centre square of the frame after its shorter side was resized to S, cut into a grid
    of patches, row after row. Read backwards: the square is as wide as the frame's shorter side, and what
    lies outside of it the model never saw; it is drawn dark. A picture that was padded to a square for the
    model is drawn with its padding, since attention may fall there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from llamavid.config import Preprocessing
from llamavid.errors import SourceError, UsageError
from llamavid.replacing import replacing
from llamavid.runtime.clip import is_padded
from llamavid.runtime.evidence import NOT_PROOF, Evidence, clock
from llamavid.runtime.pixels import pad_to_square
from llamavid.runtime.video.frames import Source

Rgb = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TILE_WIDTH, TILE_HEIGHT = 300, 400  # pixels a frame is fitted into
COLUMNS = 3

_MARGIN, _CAPTION, _TITLE_SIZE, _TEXT_SIZE = 16, 22, 18, 13
_SCALE_WIDTH, _SCALE_HEIGHT = 220, 12
_PAPER, _INK, _PALE = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_HEAT = np.array(  # from nothing to the most, over the picture; evenly lighter, as eyes and printers see it
    [(20, 10, 60), (95, 20, 110), (175, 45, 95), (235, 100, 45), (250, 175, 30), (255, 250, 150)], float
)
_THIN, _THICK = 0.15, 0.85  # how much of the picture the least and the most heat cover
_OUTSIDE = 0.35  # brightness of what the model did not see
_CROPPED = "Dark: cropped away before it looked."
_PNG = b"\x89PNG\r\n\x1a\n"


class Box(NamedTuple):
    """A rectangle in a frame's pixels, from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class ShownFrame:
    """A frame made small, and what was looked at in it.

    rgb: uint8 [h, w, 3].
    attention: float32 [grid, grid].
    box: where that lies in `rgb`.
    """

    pts_seconds: float
    relevance: float
    rank: int
    rgb: Rgb
    attention: npt.NDArray[np.float32]
    box: Box

    @property
    def is_cropped(self) -> bool:
        """Whether the model saw less than the whole frame."""
        height, width = self.rgb.shape[:2]
        return self.box.right - self.box.left < width - 1 or self.box.bottom - self.box.top < height - 1


def attended_box(width: int, height: int, *, image_size: int) -> Box:
    """What the encoder sees of a frame of that size; Note [Where a patch lies]."""
    shorter = min(width, height)

    def side(length: int) -> tuple[float, float]:
        resized = image_size * length // shorter
        first = (resized - image_size) // 2
        return first * length / resized, (first + image_size) * length / resized

    (left, right), (top, bottom) = side(width), side(height)
    return Box(left, top, right, bottom)


def shown_frames(
    source: Source, evidence: Evidence, places: Sequence[int], preprocessing: Preprocessing
) -> list[ShownFrame]:
    """The frames at `places` of the evidence, in time order; one decoded frame in memory at a time.

    Args:
        source: opened anew, at the frames a second that were watched.

    Raises:
        SourceError: the file no longer has these frames.
    """
    wanted = {evidence.frames[at].index: at for at in places}
    ranks, found = evidence.ranks, list[ShownFrame]()
    for frame in source.frames():
        if frame.index not in wanted:
            continue
        at = wanted.pop(frame.index)
        padded = is_padded(source.kind, preprocessing)
        rgb = pad_to_square(frame.rgb, mean=preprocessing.mean) if padded else frame.rgb
        small = _fitted(rgb)
        box = attended_box(rgb.shape[1], rgb.shape[0], image_size=preprocessing.image_size)
        x, y = small.shape[1] / rgb.shape[1], small.shape[0] / rgb.shape[0]
        grid = round(evidence.attention.shape[1] ** 0.5)
        found.append(
            ShownFrame(
                frame.pts_seconds,
                float(evidence.relevance[at]),
                int(ranks[at]),
                small,
                evidence.attention[at].reshape(grid, grid),
                Box(box.left * x, box.top * y, box.right * x, box.bottom * y),
            )
        )
        if not wanted:
            return found
    raise SourceError(
        f"{source.path!r} no longer has frame {min(wanted)}",
        expected="the file that was watched",
        next_step="Try again when nothing writes to it.",
    )


def heat_over(frame: ShownFrame) -> npt.NDArray[np.float32]:
    """Attention a patch at every pixel of `frame.rgb`, float32 [h, w], smooth between patches; 0 outside."""
    height, width = frame.rgb.shape[:2]
    grid, box = len(frame.attention), frame.box
    x, y = grid / (box.right - box.left), grid / (box.bottom - box.top)
    back = (x, 0, -box.left * x, 0, y, -box.top * y)  # from a pixel to its place in the grid
    patches = Image.fromarray(frame.attention.astype(np.float32))
    spread = patches.transform(
        (width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC
    )
    return np.asarray(spread).clip(min=0)


def drawing(shown: Sequence[ShownFrame], *, title: str) -> Image.Image:
    """One picture of all frames. They share one scale, so that their colors can be compared."""
    highest = max(float(frame.attention.max()) for frame in shown)
    tiles = [Image.fromarray(_heated(frame, highest)) for frame in shown]
    columns = min(COLUMNS, len(tiles))
    tile_width, tile_height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    rows = -(-len(tiles) // columns)
    width = max(2 * _MARGIN + columns * (tile_width + _MARGIN) - _MARGIN, 2 * _MARGIN + 620)
    title_font, font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_TEXT_SIZE)
    lines = _wrapped(title, title_font, width - 2 * _MARGIN)
    top = _MARGIN + len(lines) * (_TITLE_SIZE + 6) + 8
    height = top + rows * (tile_height + _CAPTION + _MARGIN) + 2 * _CAPTION + _MARGIN

    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * (_TITLE_SIZE + 6)), line, _INK, title_font)
    for number, (frame, tile) in enumerate(zip(shown, tiles, strict=True)):
        x = _MARGIN + number % columns * (tile_width + _MARGIN)
        y = top + number // columns * (tile_height + _CAPTION + _MARGIN)
        page.paste(tile, (x, y))
        caption = f"{clock(frame.pts_seconds)}   relevance {frame.relevance:.1f}, rank {frame.rank}"
        pen.text((x, y + tile.height + 4), caption, _INK, font)
    _draw_scale(page, pen, font, highest, height - _MARGIN - 2 * _CAPTION + 6)
    cropped = any(frame.is_cropped for frame in shown)
    footer = f"{NOT_PROOF} {_CROPPED if cropped else ''}"
    pen.text((_MARGIN, height - _MARGIN - _CAPTION + 6), footer, _PALE, font)
    return page


def check_replaceable(path: Path) -> None:
    """Raises `UsageError` when writing to `path` would destroy anything but a PNG."""
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_PNG)) == _PNG:
                return
    raise UsageError(f"{path} exists and is no PNG", next_step="Choose another -o.")


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        UsageError: `path` is something else than a PNG, which is not replaced.
        OSError: the disk is full or may not be written.
    """
    check_replaceable(path)
    with replacing(path) as beside:
        picture.save(beside, format="PNG", optimize=True)


def _fitted(rgb: Rgb) -> Rgb:
    """As large as fits into a tile; small frames are enlarged."""
    height, width = rgb.shape[:2]
    factor = min(TILE_WIDTH / width, TILE_HEIGHT / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def _heated(frame: ShownFrame, highest: float) -> Rgb:
    """The frame under its heat, dark where the model did not look at all."""
    heat = heat_over(frame)[..., None] / highest
    cover = _THIN + (_THICK - _THIN) * np.clip(heat, 0, 1)
    mixed = (1 - cover) * frame.rgb + cover * _colored(heat[..., 0])
    rows, columns = np.indices(heat.shape[:2]) + 0.5
    box = frame.box
    seen = (rows > box.top) & (rows < box.bottom) & (columns > box.left) & (columns < box.right)
    return np.where(seen[..., None], mixed, _OUTSIDE * frame.rgb).astype(np.uint8)


def _colored(heat: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Heat from 0 to 1 [...] -> rgb from 0 to 255 [..., 3]."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(heat, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)


def _draw_scale(page: Image.Image, pen: ImageDraw.ImageDraw, font: Font, highest: float, y: int) -> None:
    ramp = _colored(np.linspace(0, 1, _SCALE_WIDTH))[None].repeat(_SCALE_HEIGHT, axis=0)
    x = _MARGIN + pen.textlength("0 %  ", font)
    pen.text((_MARGIN, y - 2), "0 %", _INK, font)
    page.paste(Image.fromarray(ramp.astype(np.uint8)), (round(x), y))
    text = f"{highest:.0%} of a frame's attention on one patch"
    pen.text((x + _SCALE_WIDTH + 8, y - 2), text.replace("%", " %", 1), _INK, font)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """In lines of at most `width` pixels; one word longer than that is a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
