"""Makes files that folders of images hold and should not hold, and good ones in every mode and format."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Rng = np.random.Generator

#: Suffix -> (format, modes, options) that a good file of it may have.
GOOD = {
    ".png": ("PNG", ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"), [{}, {"optimize": True}]),
    ".bmp": ("BMP", ("1", "L", "P", "RGB", "RGBA"), [{}]),
    ".webp": ("WEBP", ("RGB", "RGBA"), [{"lossless": True}, {"quality": 80}]),
    ".jpg": ("JPEG", ("L", "RGB", "CMYK"), [{}, {"progressive": True}]),
    ".jpeg": ("JPEG", ("L", "RGB", "CMYK"), [{"quality": 30}]),
    ".tif": (
        "TIFF",
        ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK"),
        [{}, *({"compression": f"tiff_{name}"} for name in ("lzw", "adobe_deflate")), {"compression": "packbits"}],
    ),
}
#: Formats of Pillow that the package does not read, whatever the file's name.
FOREIGN = ("GIF", "ICO", "PPM", "TGA", "PCX", "SGI", "IM", "JPEG2000", "PDF", "EPS", "DDS")
_ODD_NAMES = (
    "\n\nTraceback (most recent call last):",
    "\x1b[2J\x1b]0;title\x07",
    "\r    ",
    "\u202egnp",
    "é 字 \U0001f3a8",
    "-o --help",
    "%s %n {0} $a$",
    "x" * 180,
    " ",
    "'\"; $(exit)",
    "a.b.c",
    os.fsdecode(b"\xff\xfe\x80"),
    "\x7f\x9b31m\x08",
)


def size_of(rng: Rng) -> tuple[int, int]:
    """Draws a size; one that is 1 pixel wide or high now and then."""
    return tuple(int(n) for n in rng.choice([1, 2, 7, 16, 20, 33], 2, p=[0.05, 0.05, 0.2, 0.3, 0.2, 0.2]))


def name_of(rng: Rng, number: int, suffix: str) -> str:
    """Draws a name that begins with the number, by which messages are searched; it may lie in a subfolder."""
    odd = str(rng.choice(_ODD_NAMES)) if rng.random() < 0.3 else ""
    folder = str(rng.choice(["", "sub/", "sub/deep er/", f"d{os.fsdecode(bytes([255]))}/"], p=[0.6, 0.2, 0.1, 0.1]))
    return f"{folder}f{number:03d}-{odd}{suffix.upper() if rng.random() < 0.1 else suffix}"


def picture(rng: Rng, mode: str, size: tuple[int, int]) -> Image.Image:
    """Draws an image of any mode."""
    shape = size[::-1]
    if mode == "1":
        return Image.fromarray(rng.random(shape) < 0.5)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, shape, dtype=np.uint16))
    if mode == "P":
        image = Image.frombytes("P", size, rng.integers(0, 8, shape, dtype=np.uint8).tobytes())
        image.putpalette(rng.integers(0, 256, 24).tolist())
        if rng.random() < 0.3:
            image.info["transparency"] = int(rng.integers(8))
        return image
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, rng.integers(0, 256, (*shape, bands), dtype=np.uint8).tobytes())


def good(rng: Rng, suffix: str) -> bytes:
    """Draws a good file: any mode, some animated or with several pages, some with EXIF."""
    file_format, modes, options = GOOD[suffix]
    size = size_of(rng)
    mode = str(rng.choice(modes))
    chosen = dict(options[int(rng.integers(len(options)))])
    if rng.random() < 0.15:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = int(rng.integers(1, 9)), "a picture"
        chosen |= {} if file_format == "BMP" else {"exif": exif.tobytes()}
    if file_format in ("PNG", "WEBP", "TIFF") and rng.random() < 0.1:
        chosen |= {"save_all": True, "append_images": [picture(rng, mode, size) for _ in range(2)]}
    content = io.BytesIO()
    picture(rng, mode, size).save(content, file_format, **chosen)
    return content.getvalue()


def damaged(rng: Rng) -> bytes:
    """Draws a file that begins as an image and goes wrong somewhere. Some can be read nevertheless."""
    whole = good(rng, str(rng.choice(list(GOOD))))
    how = rng.integers(6)
    content = bytearray(whole)
    if how == 0:
        return whole[: int(rng.integers(len(whole)))]
    if how == 1:
        for _ in range(int(rng.integers(1, 20))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    elif how == 2:  # near the start, where sizes and offsets stand
        for _ in range(int(rng.integers(1, 6))):
            content[int(rng.integers(min(len(content), 200)))] = int(rng.choice([0, 1, 127, 128, 255]))
    elif how == 3:
        begin, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        content[begin:end] = bytes(rng.integers(0, 256, int(rng.integers(0, 50)), dtype=np.uint8))
    elif how == 4:
        content = content[: len(content) // 2] + bytearray(good(rng, str(rng.choice(list(GOOD)))))
    else:
        content[int(rng.integers(len(content))) :] = bytes(len(content))
    return bytes(content)


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3000))) + chunk(b"IEND", b"")


def wrong(rng: Rng) -> bytes:
    """Draws a file that can never be read as an image of the package's formats."""
    how = rng.integers(6)
    if how == 0:
        return b""
    if how == 1:
        return bytes(rng.integers(0, 256, int(rng.integers(1, 3000)), dtype=np.uint8))
    if how == 2:
        return _png(*(int(n) for n in rng.choice([0, 100_000, 2**31 - 1, 2**32 - 1], 2)))
    if how == 3:
        width, height = (int(n) for n in rng.choice([0, 65_500, 2**31 - 1], 2))
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    if how == 4:
        return b"\x1b[31mtext\x07" * int(rng.integers(1, 100))
    content = io.BytesIO()
    picture(rng, "RGB", (16, 16)).save(content, str(rng.choice(FOREIGN)))
    return content.getvalue()


def _socket(path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        listening.bind(f"/proc/self/fd/{folder}/s")  # the path of a socket may not be long
        os.rename(path.with_name("s"), path)
    finally:
        listening.close()
        os.close(folder)


#: What is no regular file.
SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "null": lambda path: path.symlink_to("/dev/null"),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "input": lambda path: path.symlink_to("/dev/stdin"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("not there"),
}
