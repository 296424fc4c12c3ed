"""One reader for each kind of training data."""

from .base import Batch, Reader, Share
from .items import DatasetReader, LoaderReader
from .pairs import PairsReader
from .sampler import SamplerReader
from .table import TableReader

__all__ = [
    "Batch",
    "DatasetReader",
    "LoaderReader",
    "PairsReader",
    "Reader",
    "SamplerReader",
    "Share",
    "TableReader",
]
