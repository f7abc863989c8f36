"""A picture as a source of one frame. Known by its content; looks as a viewer shows it."""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from llamavid.errors import SourceError
from llamavid.runtime.video.frames import TURNED, Frame, Source, SourceKind, check_size, too_large, unreadable

# Pillow's list is closed: some of its formats start other programs.
PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
PLAYED = ("GIF", "PNG", "AVIF")  # whose animations FFmpeg plays; released ones do not play WebP's


def picture_source(file: BinaryIO, name: str) -> Source | None:
    """None when the file is no picture, or an animation that plays as a video."""
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd tags, and about sizes that are checked here
            Image.init()
            image = Image.open(file, formats=[f for f in PICTURES if f in Image.OPEN])  # AVIF is not in all
            if image.format in PLAYED and getattr(image, "is_animated", False):
                return None
            check_size(name, *image.size)
            rgb = _picture_rgb(image, notes)
    except UnidentifiedImageError:
        return None
    except (SourceError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise too_large(name, str(error)) from error
    except Exception as error:  # Pillow has no base error: a damaged file raises whatever it trips over
        raise unreadable(name, f"is a picture that cannot be decoded ({error})") from error
    frames = iter([Frame(index=0, pts_seconds=0.0, picture=rgb)])
    return Source(name, SourceKind.PICTURE, 0.0, 1, 1, notes, frames)


def _picture_rgb(image: Image.Image, notes: list[str]) -> np.ndarray:
    """uint8 [H, W, 3] as a viewer shows it: upright, and on white where it is transparent."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photo with its depth or gain map
        notes.append("It holds several pictures: the first one is taken.")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        notes.append(TURNED)
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits
        samples = np.asarray(image)
        if image.mode == "F" or samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("its samples are neither of 8 nor of 16 bits")
        image = Image.fromarray((samples >> 8).astype(np.uint8))  # the high byte, as Pillow reads colour
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[:, :, 3].min() < 255:
            notes.append("It is transparent in parts: these are shown on white.")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
