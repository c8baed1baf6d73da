"""TIFF by its tags: what Pillow would read otherwise than it is, or not at all, and what to do about it."""

import contextlib
import io
import json
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2

PAGES = 64
"""Pages that are looked at."""
NEW_SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, SAMPLES, PLANES, EXTRA, FORMAT = (
    254,
    258,
    259,
    262,
    270,
    277,
    284,
    338,
    339,
)
GEO = (33550, 33922, 34264, 34735, 42112, 42113)
"""Tags of GeoTIFF and GDAL."""
ALPHA = (1, 2, 999)
JPEG_2000 = (33003, 33004, 33005, 34712)
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Bands of a photometric interpretation."""
KINDS = {2: "signed whole numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
CONVERT = "write 8 or 16 bits of one band, or 8 bits of three, or give the numbers as .npy"


def misread(file: BinaryIO) -> str:
    """What a TIFF is that Pillow cannot read as it is, as the end of a sentence; empty for others and for what is no
    TIFF. The file's place is as it was."""
    start = file.tell()
    try:
        head = file.read(16)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return ""
        pages = _pages(file, head if head[2:3] == b"+" or head[3:4] == b"+" else head[:8])
        return _why(pages)
    except Exception:  # tags are broken in as many ways: Pillow says it of the file
        return ""
    finally:
        file.seek(start)


def bytes_misread(data: bytes) -> str:
    """`misread` of an encoded image."""
    return misread(io.BytesIO(data)) if data[:2] in (b"II", b"MM") else ""


def _pages(file: BinaryIO, head: bytes) -> list[dict[int, Any]]:
    """Tags of each page."""
    directory, seen = ImageFileDirectory_v2(head), set[int]()
    pages: list[dict[int, Any]] = []
    place = directory.next
    while place and place not in seen and len(pages) < PAGES:
        seen.add(place)
        file.seek(place)
        directory.load(file)
        pages.append({tag: directory[tag] for tag in directory if tag < 1000 or tag in GEO})
        place = directory.next
    return pages


def _why(pages: list[dict[int, Any]]) -> str:
    first = pages[0]
    whole = [page for page in pages if not page.get(NEW_SUBFILE, 0) & 5]  # neither smaller copies nor masks
    count = max(len(whole), _described(str(first.get(DESCRIPTION, ""))))
    if count > 1:
        return f"is a TIFF of {count} pages; write each to a file of its own, or give all as .npy"
    bits, samples = _all(first.get(BITS, 1)), first.get(SAMPLES, 1)
    kind, photometric = _all(first.get(FORMAT, 1)), first.get(PHOTOMETRIC, 1)
    compression, extra = first.get(COMPRESSION, 1), _all(first.get(EXTRA, ()))
    deep = max(bits)
    if kind[0] in KINDS:
        return f"is a TIFF of {KINDS[kind[0]]} of {deep} bits; {CONVERT}"
    if compression in JPEG_2000:
        return "is a TIFF with JPEG 2000 inside; write it with another compression"
    if deep > 16:
        return f"is a TIFF of {deep} bits; {CONVERT}"
    bands = COLOURS.get(photometric)
    if bands is None:
        return f"is a TIFF of photometric interpretation {photometric}; {CONVERT}"
    beyond = samples - bands
    if beyond > 1 or (beyond == 1 and (not extra or extra[0] not in ALPHA)):
        return f"is a TIFF of {samples} bands, of which {beyond} may be no alpha; {CONVERT}"
    if beyond == 1 and any(tag in first for tag in GEO):
        return f"is a GeoTIFF of {samples} bands, whose last may be near infrared and no alpha; {CONVERT}"
    if deep > 8 and samples > 1:
        planes = ", its planes apart" if first.get(PLANES, 1) == 2 else ""
        return f"is a TIFF of {samples} bands of {deep} bits{planes}, of which 8 bits could be read; {CONVERT}"
    if deep > 8 and photometric == 0:
        return f"is a TIFF of {deep} bits whose largest value is black; write it with black as 0"
    if photometric == 8:
        return "is a TIFF of CIE L*a*b* colours; write it as RGB"
    return ""


def _all(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _described(text: str) -> int:
    """Pages that a description tells of where only the first has tags: tifffile's truncated series, ImageJ's stacks."""
    if text.startswith("ImageJ="):
        numbers = [line.partition("=")[2] for line in text.splitlines() if line.startswith("images=")]
        return int(numbers[0]) if numbers else 1
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        note = json.loads(text)
        if note.get("truncated"):
            return int(note["shape"][0])
    return 1
