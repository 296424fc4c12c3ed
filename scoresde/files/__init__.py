"""Samples in files and folders, as arrays: `read` goes by the name, and the tables FILES and FOLDERS say who reads what.

An array is (n, *shape), one sample per row, images channels first. Beside it stand conditions by name, one row per sample, as
`fit(..., given=...)` takes them. Files come from strangers, so:

- nothing is unpickled, nothing is unpacked to the disk, and no file can name code to import;
- the size that a header claims is compared with what the file holds before anything of that size is allocated. Deflate can't
  shrink data by more than 1032 : 1 (zlib technical notes), so a compressed file bounds what may come out of it too;
- whatever is wrong is a ValueError of one sentence that names the file.
"""

from .base import Samples
from .formats import FILES, FOLDERS, WRITERS, read, write
from .images import columns

__all__ = ["FILES", "FOLDERS", "WRITERS", "Samples", "columns", "read", "write"]
