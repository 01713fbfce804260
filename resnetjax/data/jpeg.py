"""Ordinary JPEG files, decoded by simplejpeg as far down as their pixels are needed.

The pixels are Pillow's, in three quarters of the time; and on average a sixth of an image's rows
lies below a random crop. TensorFlow's `decode_and_crop_jpeg` leaves them out likewise.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resnetjax.data.preprocess import MAX_PIXELS

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_BASELINE_FRAME, _SCAN, _RESTARTS = 0xC0, 0xDA, 0xDD  # of the markers of ITU-T T.81

# The first fault of a file whose height was cut, if that is its only one: its end is 0xD9.
_SUPERFLUOUS = "Corrupt JPEG data: \\d+ extraneous bytes before marker 0xd9"


@dataclass(frozen=True)
class Jpeg:
    """A file whose header has been read.

    Attributes:
        data: All of it.
        height: In pixels.
        width: In pixels.
    """

    data: bytes
    height: int
    width: int

    def rows(self, stop: int) -> UInt8[np.ndarray, "rows width 4"] | None:
        """The first `stop` rows at least; None if Pillow should have a look.

        Red, green, blue and a byte without meaning, which Pillow has in memory too.

        A fault in the file is one that Pillow should see, but for those that are not seen because
        they lie below the rows, and look like the data of an image.
        """
        assert simplejpeg is not None
        kept = stop + 2  # the colour of the last row may be smoothed with that of the next two
        at = _height_at(self.data) if kept < self.height else None
        if at is None:
            kept, data = self.height, self.data
        else:
            data = self.data[:at] + kept.to_bytes(2, "big") + self.data[at + 2 :]
        pixels = np.empty((kept, self.width, 4), np.uint8)
        try:
            simplejpeg.decode_jpeg(data, "RGBX", fastdct=False, fastupsample=False, buffer=pixels)
        except ValueError as fault:
            if at is None or not re.fullmatch(_SUPERFLUOUS, str(fault)):
                return None
        return pixels


def read_header(data: bytes) -> Jpeg | None:
    """Height and width of a JPEG file; None leaves all other files to Pillow, and all unusual ones.

    Those are files of CMYK or RGB, and of more than `MAX_PIXELS`; all files without simplejpeg.
    """
    if simplejpeg is None:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in ("YCbCr", "Gray") or int(height) * int(width) > MAX_PIXELS:
        return None
    return Jpeg(data, int(height), int(width))


def _height_at(data: bytes) -> int | None:
    """Where the height stands in a baseline file without restarts; None in all others."""
    at, found = 2, None
    while data[at : at + 1] == b"\xff" and at + 1 < len(data):
        marker = data[at + 1]
        if marker == _BASELINE_FRAME:
            found = at + 5  # after the marker, the segment's length and the bits of a sample
        if marker in (_SCAN, _RESTARTS):
            return found if marker == _SCAN else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
