"""PNG and TIFF files of any depth, written by hand where Pillow writes other ones."""

import struct
import zlib

import numpy as np


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of (h, w) numbers with ``bits`` each, the first in the highest bits, rows filled up to bytes."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in values]
    rows = []
    for row in values:
        each = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].flatten()
        rows.append(np.packbits(each).tobytes())
    return rows


def png(
    values: np.ndarray, bits: int, colour_type: int = 0, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of (h, w) numbers; grey is colour type 0, a palette 3; chunks may go before and after the pixels."""
    h, w = values.shape
    rows = b"".join(b"\0" + row for row in packed(values, bits))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int | None = None, **tags: int | list[int]) -> bytes:
    """A little-endian TIFF of (h, w) or (h, w, bands) values; tags by their numbers, as ``t262=1``."""
    h, w = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    if bits is not None and bits < 8:
        data = b"".join(packed(values, bits))
    else:
        bits = values.dtype.itemsize * 8
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    fields: dict[int, int | list[int]] = {
        256: w, 257: h, 258: [bits] * bands, 259: 1, 262: 2 if bands >= 3 else 1, 273: 8, 277: bands, 278: h,
        279: len(data),
    }  # fmt: skip
    fields |= {int(name[1:]): value for name, value in tags.items()}
    entries, extra, at = b"", b"", 8 + len(data) + 2 + 12 * len(fields) + 4
    for number, value in sorted(fields.items()):
        items = value if isinstance(value, list) else [value]
        kind = 4 if number in (273, 279) else 3
        content = struct.pack("<" + ("I" if kind == 4 else "H") * len(items), *items)
        if len(content) > 4:
            entries += struct.pack("<HHII", number, kind, len(items), at + len(extra))
            extra += content
        else:
            entries += struct.pack("<HHI", number, kind, len(items)) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(fields)) + entries + b"\0" * 4 + extra
