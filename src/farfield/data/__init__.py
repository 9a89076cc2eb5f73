"""Data sets: ``load`` reads named sets, folders, arrays and parquet files into one kind of value, :class:`DataSet`."""

from farfield.data.batches import batch_indices
from farfield.data.dataset import DataSet, Split, content_digest, describe
from farfield.data.pixels import resize
from farfield.data.sources import SOURCES, load, names

__all__ = ["SOURCES", "DataSet", "Split", "batch_indices", "content_digest", "describe", "load", "names", "resize"]
