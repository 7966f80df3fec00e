"""The PNG picture of a row whose columns are pixels, as a data URI."""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEAST = 16  # least number of pixels in an image


def image_shape(names: list[str]) -> tuple[int, int] | None:
    """(height, width) if the columns are named after pixels, row by row; None if they are not.

    Recognises names that end in row and column ("pixel_0_7", "1x28") and names that count the pixels of a
    square image ("pixel0", "pixel783").

    >>> from xent.html.thumbnails import image_shape
    >>> image_shape([f"pixel_{i}_{j}" for i in range(8) for j in range(8)]), image_shape(["a1", "a2"])
    ((8, 8), None)
    """
    if len(names) < LEAST:
        return None
    matches = [re.fullmatch(r"(?:pixel|px|p)?[_ ]?(\d+)[_x](\d+)", name) for name in names]
    if all(matches):
        pairs = [(int(m[1]), int(m[2])) for m in matches if m]
        (top, left), (bottom, right) = pairs[0], pairs[-1]
        if pairs == [(i, j) for i in range(top, bottom + 1) for j in range(left, right + 1)]:
            return bottom + 1 - top, right + 1 - left
    counts = [re.fullmatch(r"(?:pixel|px)[_ ]?(\d+)", name) for name in names]
    side = math.isqrt(len(names))
    if all(counts) and side * side == len(names):
        numbers = [int(m[1]) for m in counts if m]
        if numbers == list(range(numbers[0], numbers[0] + len(names))):
            return side, side
    return None


def data_uri(ink: Array) -> str:
    """``ink (height, width)`` in [0, 1], black where it is 1 and transparent where it is 0."""
    height, width = ink.shape
    pixels = np.zeros(
        (height, 1 + 2 * width), np.uint8
    )  # each line: filter type 0, then grey and alpha of each pixel
    pixels[:, 2::2] = np.round(255 * np.clip(ink, 0, 1))
    header = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels.tobytes(), 9)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
