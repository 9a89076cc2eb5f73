"""Parquet files in the layout of Hugging Face's image feature, one file or several shards, streamed by row groups.

The picture column is ``image`` or ``img`` (else the only column that can hold pictures): a struct with the field
``bytes``, or plain binary. The label column is ``label``, ``labels``, ``fine_label`` or ``y``: integers; all −1, as
hubs write for an unlabelled set, means none. Class names are taken from the file's ``huggingface`` metadata.

Where a set has at least 50,000 rows, its last rows are held out for validation, 5,000 unless told: such files are
taken to be shuffled already. Smaller sets are split by a permutation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farfield.data.pixels import Assembler, Size, decode, one_line
from farfield.data.progress import track
from farfield.data.source import Source
from farfield.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "y")
LARGE, TAIL = 50_000, 5_000
_SPLIT_NAMES = ("train", "test", "validation", "valid", "val")
_BATCH = 256


def open_parquet(paths: Sequence[Path], name: str) -> Source:
    """Parquet shards, in the order given, as one source.

    Args:
        paths: the files; all with the columns of the first.
        name: what the data are called.

    Raises:
        DataError: for damaged files, no rows, missing columns, or shards of different splits.
    """
    splits = {split for path in paths for split in _SPLIT_NAMES if path.name.startswith(f"{split}-")}
    if len(splits) > 1:
        raise DataError(f"{name}: holds the splits {', '.join(sorted(splits))}; name one, e.g. {name}/train-*.parquet")
    files = [_open(path) for path in paths]
    schema = files[0].schema_arrow
    image, label = _columns(schema, paths[0])
    for path, file in zip(paths, files, strict=True):
        missing = {image, label} - {None} - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path}: has no column {', '.join(sorted(map(str, missing)))}, which {paths[0].name} has")
    count = sum(file.metadata.num_rows for file in files)
    if count == 0:
        raise DataError(f"{name}: no rows")

    def read(rows: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        order = torch.argsort(rows)
        wanted = rows[order]
        out, labels = Assembler(len(rows), size), []
        pairs = _stream(paths, files, image, label, wanted)
        for where, encoded, value in track(pairs, len(rows), f"reading {name}"):
            out.add(decode(encoded, where), where)
            labels.append(value)
        images = out.result()
        in_order = bool((order[1:] > order[:-1]).all())
        back = torch.argsort(order)
        if not in_order:
            images = images[back]
        return images, None if label is None or set(labels) == {-1} else torch.tensor(labels, dtype=torch.int64)[back]

    large = count >= LARGE
    return Source(name, count, read, _class_names(schema, label), TAIL if large else None, tail=large)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged or not a parquet file: {one_line(error)}") from None


def _columns(schema: Any, path: Path) -> tuple[str, str | None]:
    """The names of the picture column and of the label column."""
    import pyarrow as pa

    def holds_pictures(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    candidates = [field.name for field in schema if holds_pictures(field.type)]
    image = next((name for name in IMAGE_COLUMNS if name in candidates), None)
    if image is None and len(candidates) == 1:
        image = candidates[0]
    if image is None:
        raise DataError(
            f"{path}: columns {', '.join(schema.names)}; expected pictures (binary, or a struct with 'bytes') "
            f"in a column {' or '.join(IMAGE_COLUMNS)}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{path}: column {label} is {schema.field(label).type}; expected integers")
    return image, label


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """Class names from the metadata that the ``datasets`` library writes, or None."""
    text = (schema.metadata or {}).get(b"huggingface")
    if label is None or text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _stream(
    paths: Sequence[Path], files: Sequence[Any], image: str, label: str | None, wanted: Tensor
) -> Iterator[tuple[str, bytes, int | None]]:
    """Name, encoded picture and label of the wanted rows (sorted); row groups without any are not read."""
    columns = [image] if label is None else [image, label]
    first = 0
    for path, file in zip(paths, files, strict=True):
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            low, high = (int(torch.searchsorted(wanted, edge)) for edge in (first, stop))
            picks, first = (wanted[low:high] - first).tolist(), stop
            if picks:
                yield from _read_group(path, file, group, columns, picks)


def _read_group(
    path: Path, file: Any, group: int, columns: list[str], picks: list[int]
) -> Iterator[tuple[str, bytes, int | None]]:
    import pyarrow as pa

    chosen, start = iter(picks), 0
    row = next(chosen, None)
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
            pictures = batch.column(columns[0])
            if pa.types.is_struct(pictures.type):
                pictures = pictures.field("bytes")
            labels = batch.column(columns[1]) if len(columns) > 1 else None
            while row is not None and row < start + len(batch):
                where = f"{path.name} row group {group} row {row}"
                encoded = pictures[row - start].as_py()
                label = None if labels is None else labels[row - start].as_py()
                if encoded is None:
                    raise DataError(f"{where}: holds no picture bytes (files named in 'path' are not followed)")
                if labels is not None and label is None:
                    raise DataError(f"{where}: has no label")
                yield where, encoded, label
                row = next(chosen, None)
            if row is None:
                return
            start += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged: {one_line(error)}") from None
