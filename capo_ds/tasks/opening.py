"""What a data file holds, whatever its name says: unpacked where it is compressed, and refused
where it is no data at all, as a Git LFS pointer or a saved web page."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib

from capo_ds.config import ConfigError
from capo_ds.config.text import LFS_POINTER

BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def unpacked(content: bytes, name: str) -> bytes:
    """The content, of a compressed file what is in it. Raises `ConfigError` naming the file."""
    if content.startswith(LFS_POINTER):
        raise ConfigError(f"{name}: is a Git LFS pointer; run `git lfs pull` in its folder")
    if content.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{name}: is a ZIP archive; unpack it")
    if PAGE.match(content):
        raise ConfigError(f"{name}: is a web page, not the data; download the file itself")
    for mark, opener in OPENERS.items():
        if re.match(mark, content):
            try:
                return opener(content)
            except BROKEN as error:
                raise ConfigError(f"{name}: cannot be read: {error}") from error
    return content


def _zstandard(content: bytes) -> bytes:
    import pyarrow as pa

    return pa.input_stream(pa.BufferReader(content), compression="zstd").read()


ENDINGS = (".gz", ".bz2", ".xz", ".zst")
OPENERS = {
    rb"\x1f\x8b": gzip.decompress,
    rb"BZh[1-9]1AY&SY": bz2.decompress,
    rb"\xfd7zXZ\x00": lzma.decompress,
    rb"\x28\xb5\x2f\xfd": _zstandard,
}
