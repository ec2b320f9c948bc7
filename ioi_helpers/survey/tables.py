"""A table in one Parquet file that says what its columns hold; whole, or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

_KEY = b"ioi_helpers"

WHOSE = {
    "model": "the model's name, as it was asked for",
    "revision": "its revision, where one was asked for",
    "weights": "what tells its weights and dtype from others: the start of a SHA-256",
    "data": "which prompts",
    "failure": "what went wrong, where there are no numbers",
}
"""The columns that every table begins with."""


class HasTables:
    """What holds a survey's tables by the label of the question."""

    tables: dict[str, pd.DataFrame]

    def table(self, question: str) -> pd.DataFrame:
        """A question's answers, those of all models below each other, in the order of the survey.

        It begins with the columns of :data:`WHOSE`; ``attrs["columns"]`` says what each holds, with
        its unit. A task that failed is a row that says so, without numbers.

        Raises:
            ValueError: The survey has no such question.
        """
        if question not in self.tables:
            raise ValueError(
                f"{question!r} is no question of this survey; it has {', '.join(self.tables)}."
            )
        return self.tables[question]


def write(table: pd.DataFrame, path: Path, record: Mapping[str, Any], unfinished: Path) -> None:
    """Write a table, with ``attrs["columns"]`` and a record of how it was made.

    It is written under another name first and renamed when it is on the disk, so that ``path`` is
    whole or not there, whoever is killed when.

    Args:
        table: With plain columns; its index is left out.
        path: The file; one that exists is replaced.
        record: What JSON can hold.
        unfinished: A folder on the same file system, for the file that is not whole yet.
    """
    columns = {str(name): text for name, text in table.attrs.get("columns", {}).items()}
    plain = table.copy()
    plain.attrs = {}
    arrow = pa.Table.from_pandas(plain, preserve_index=False)
    kept = {**(arrow.schema.metadata or {}), _KEY: json.dumps({"columns": columns, **record})}
    temporary = unfinished / f"{path.stem}-{uuid4().hex}.parquet"
    with temporary.open("wb") as file:
        parquet.write_table(arrow.replace_schema_metadata(kept), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that :func:`write` wrote, with ``attrs["columns"]``, and its record."""
    arrow = parquet.read_table(path)
    record: dict[str, Any] = json.loads(arrow.schema.metadata[_KEY])
    table: pd.DataFrame = arrow.to_pandas()
    table.attrs = {"columns": record.pop("columns")}
    return table, record
