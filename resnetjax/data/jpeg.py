"""Ordinary JPEG files, decoded by simplejpeg as far down as their pixels are needed.

The pixels are Pillow's, in three quarters of the time, and a random crop ends above a sixth of the
rows. TensorFlow's `decode_and_crop_jpeg` leaves them out likewise.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resnetjax.data.preprocess import MAX_PIXELS

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_BASELINE_FRAME, _SCAN, _END = 0xC0, 0xDA, b"\xff\xd9"  # of the markers of ITU-T T.81


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

        A file without its end is decoded to where it ends, and so is None. What else is damaged
        below the rows is not seen; Pillow sees little of it, since JPEG has no checksum.
        """
        assert simplejpeg is not None
        kept = stop + 2  # the colour of the last row may be smoothed with that of the next two
        at = _height_at(self.data) if kept < self.height and self.data.endswith(_END) else None
        data = self.data
        if at is not None:
            data = data[:at] + kept.to_bytes(2, "big") + data[at + 2 :]
        try:
            # The data of the rows left out is superfluous, to which strict decoding objects.
            return simplejpeg.decode_jpeg(
                data, "RGBX", fastdct=False, fastupsample=False, strict=at is None
            )
        except ValueError:
            return None


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
    """Where the height stands, in a file of one pass; None in one of several."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1]
        if marker in (_BASELINE_FRAME, _SCAN):
            # After the marker: the segment's length, the bits of a sample, the height.
            return at + 5 if marker == _BASELINE_FRAME else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
