"""Files that are cut short.

FFmpeg does not tell, and drops the whole last page of an Ogg file, which may be the whole recording.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

UNKNOWN = 0x7FFF_0000  # bytes; larger sizes in a RIFF file stand for an unknown length
PAGE = 27  # bytes of a page header without its segment table
LARGEST = PAGE + 255 + 255 * 255  # bytes of a page
MAX_REPAIRED = 1 << 26  # bytes of a file that is held in memory


def ends_early(path: Path) -> bool:
    """Whether a wav, avi, aiff or ogg file is shorter than its own structure says; False for other files."""
    with path.open("rb") as file:
        head = file.read(4096)
    size = path.stat().st_size
    if head[:4] in (b"RIFF", b"FORM"):
        order: Literal["little", "big"] = "little" if head[:4] == b"RIFF" else "big"
        ends, at = [8 + int.from_bytes(head[4:8], order)], 12
        while at + 8 <= len(head):
            length = int.from_bytes(head[at + 4 : at + 8], order)
            ends.append(at + 8 + length)
            if head[at : at + 4] in (b"data", b"SSND") or not length:
                break
            at = ends[-1] + length % 2
        return any(size < end < UNKNOWN for end in ends)
    found = _last_page(path)
    return found is not None and (found[1] > len(found[0]) or not found[0][5] & 4)


def repaired(path: Path) -> io.BytesIO | None:
    """The content of an Ogg file whose last page is cut, with that page shortened to whole packets; else None."""
    found = _last_page(path)
    if found is None or found[1] <= len(found[0]) or path.stat().st_size > MAX_REPAIRED:
        return None
    content, page = path.read_bytes(), found[0]
    table = page[PAGE : PAGE + page[26]]
    count = size = used = 0
    for index, segment in enumerate(table):
        used += segment
        if PAGE + len(table) + used > len(page):
            break
        if segment < 255:  # the end of a packet
            count, size = index + 1, used
    if not count:
        return None
    # the end of the page in samples, for packets of equal length
    before = content.rfind(page[:4] + b"\x00", 0, len(content) - len(page))
    first = max(0, int.from_bytes(content[before + 6 : before + 14], "little", signed=True))
    last = int.from_bytes(page[6:14], "little", signed=True)
    packets, kept = (sum(segment < 255 for segment in part) for part in (table, table[:count]))
    granule = first + (last - first) * kept // packets if last > first else last
    header = page[:6] + granule.to_bytes(8, "little", signed=True) + page[14:22]
    body = page[PAGE + len(table) :][:size]
    crc = _checksum(header + bytes(4) + bytes([count]) + table[:count] + body).to_bytes(4, "little")
    return io.BytesIO(content[: -len(page)] + header + crc + bytes([count]) + table[:count] + body)


def _last_page(path: Path) -> tuple[bytes, int] | None:
    """The bytes of the last page that starts in the file, and its full size."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return None
        file.seek(max(0, path.stat().st_size - 2 * LARGEST))
        tail = file.read()
    start = tail.rfind(b"OggS\x00")
    if start < 0 or len(tail) - start < PAGE:
        return None
    page = tail[start:]
    return page, PAGE + page[26] + sum(page[PAGE : PAGE + page[26]])


def _checksum(data: bytes) -> int:
    """CRC-32 of Ogg: polynomial 0x04C11DB7, not reflected."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _TABLE[crc >> 24 ^ byte]
    return crc


def _entry(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_TABLE = tuple(_entry(byte) for byte in range(256))
