"""Samples in files and folders, as arrays. `read` finds the reader by name, in FILES and FOLDERS.

An array is (n, *shape), one sample per row, images channels first. Conditions have names and one
row per sample, as `fit(..., given=...)` takes them. Files come from strangers, so

- nothing is unpickled, nothing is unpacked to the disk, and no file chooses what is imported;
- the size that a header claims is compared with what the file holds before memory is allocated.
  Deflate can't shrink data by more than 1032 : 1 (zlib technical notes), so that the size of a
  compressed file bounds what comes out of it;
- whatever is wrong is a ValueError of one sentence that names the file.
"""

from .base import Samples
from .formats import FILES, FOLDERS, WRITERS, read, write
from .images import columns

__all__ = ["FILES", "FOLDERS", "WRITERS", "Samples", "columns", "read", "write"]
