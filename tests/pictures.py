"""Image files, whole and hostile ones, made here."""

import io
import struct
import zlib

import numpy as np


def pixels(height=20, width=30, seed=0):
    """Return smooth RGB pixels, uint8 [height, width, 3]: what survives JPEG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(5, 9) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(5, 9)) for _ in range(3)]
    return np.stack([(wave * 60 + 128) for wave in waves], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(array, kind="PNG", mode=None, **options):
    """Return an image file."""
    from PIL import Image

    image = Image.fromarray(array)
    if mode is not None:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows=b"", depth=8, colour=2):
    """Return a PNG that says it has this size, whatever is in it."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(side=50_000):
    """Return a PNG of half a kilobyte per million pixels: `side` x `side` of them, all black."""
    return png(side, side, b"\0" * 1000)


def webp_of(width, height):
    """Return the beginning of a WebP file of this size (VP8X)."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of(width, height):
    """Return the beginning of a JPEG file of this size."""
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\1\x11\0\2\x11\1\3\x11\1"
    return b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc0" + frame


# What no decoder should be given a chance at: name, bytes, the code it is refused with.
HOSTILE = [
    ("empty", b"", "not_an_image"),
    ("one byte", b"\xff", "not_an_image"),
    ("a text", b"hello, I am a picture", "not_an_image"),
    ("html", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    ("a pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix", "not_an_image"),
    ("a gif", b"GIF89a\x01\0\x01\0\0\0\0;", "not_an_image"),
    ("a bitmap", b"BM" + b"\0" * 60, "not_an_image"),
    ("a tiff", b"II*\0\x08\0\0\0", "not_an_image"),
    ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
    ("a png signature", b"\x89PNG\r\n\x1a\n", "not_an_image"),
    ("half a png header", png(10, 10)[:20], "not_an_image"),
    ("a png without width", png(0, 10), "not_an_image"),
    ("a bomb", bomb(), "image_too_large"),
    ("a larger bomb", png(2**31 - 1, 2**31 - 1), "image_too_large"),
    ("a wide bomb", png(2**31 - 1, 1), "image_too_large"),
    ("a webp bomb", webp_of(16383, 16383), "image_too_large"),
    ("a webp canvas bomb", webp_of(1 << 24, 1 << 24), "image_too_large"),
    ("a jpeg bomb", jpeg_of(65535, 65535), "image_too_large"),
    ("a jpeg of no height", jpeg_of(10, 0), "not_an_image"),
    ("a jpeg of endless fill", b"\xff\xd8" + b"\xff" * 5000, "not_an_image"),
    ("a jpeg of empty segments", b"\xff\xd8" + b"\xff\xe0\0\2" * 5000, "not_an_image"),
    ("a jpeg segment of no size", b"\xff\xd8\xff\xe0\0\0\0\0\0\0", "not_an_image"),
    ("a riff of something else", b"RIFF\x10\0\0\0WAVEfmt " + b"\0" * 40, "not_an_image"),
]
