"""Rows of a .parquet file. pyarrow (the extra `parquet`) reads them in a helper process (guard.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from minillm.corpus.readers.guard import shared_guard
from minillm.corpus.readers.packages import check_package
from minillm.corpus.readers.pieces import Found, Opened
from minillm.corpus.readers.records import INFO
from minillm.corpus.readers.skipped import Skip

PIECE = 16 << 20  # bytes of a piece's rows, as the file says
SECONDS = 60.0  # of computing, for a piece


def parquet_pieces(opened: Opened) -> Iterator[Found]:
    """Pieces of a .parquet file: the path, the row group, the first row of it and the number of rows, as JSON."""
    if opened.file is None:
        raise Skip("unsupported", "a .parquet is not read within another file; unpack it")
    check_package("pyarrow", "a .parquet", "parquet")
    path = os.path.abspath(opened.file.name)
    groups = shared_guard().call(f"{__name__}:row_groups", path, opened.field, seconds=SECONDS)
    place = 1
    for group, (rows, size) in enumerate(groups):
        step = max(1, rows * PIECE // max(size, 1))
        for first in range(0, rows, step):
            what = {"path": path, "group": group, "first": first, "count": min(step, rows - first), "step": step}
            yield opened.piece("rows", "row", place, json.dumps(what).encode())
            place += what["count"]


def row_groups(path: str, field: str) -> list[tuple[int, int]]:
    """The rows and the bytes of each row group. Raises: ValueError where no column has this name, and texts in it."""
    import pyarrow.parquet
    from pyarrow import types

    file = pyarrow.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    if field not in names:
        raise ValueError(f"there is no column {field!r} among {', '.join(names[:20])}; give --field")
    kind = file.schema_arrow.field(field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f"the column {field!r} holds {kind}, not texts")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def rows(path: str, field: str, group: int, first: int, count: int, step: int) -> list[str]:
    """Rows of a row group, as lines of JSON with the columns that are of use."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name == field or name.lower() in INFO]
    number = first // step
    for at, batch in enumerate(file.iter_batches(step, row_groups=[group], columns=columns, use_threads=False)):
        if at == number:
            return [json.dumps(_plain(row, field)) for row in batch.to_pylist()[:count]]
    raise ValueError(f"row group {group} has no row {first}")


def _plain(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value if name == field else str(value) for name, value in row.items() if value is not None}
