"""Raw tables of millions of rows that hold all people: read, timed and counted fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Counted
from nocturnal_kedro.sources._raw import RawTable

NUMBER = pa.float64()
TEXT = pa.string()  # stays with Arrow, a tenth of the size of Python's strings
WORD = pa.dictionary(pa.int32(), pa.string())  # text that many rows repeat; becomes categorical
CELLS = pa.large_string()  # becomes Python's strings
NO_CELL = ["", ".", "NA"]  # SAS writes a point where nothing is


def read_large_table(
    source: str, path: Path, types: Mapping[str, pa.DataType], title: str
) -> RawTable:
    """Columns of a file with `|` between its cells, on one core.

    A column of numbers with a cell that is none stays text, so that `RawTable.numbers` can name the
    cell. Raises `InputError` on an absent, empty, binary or truncated file and an absent column.
    """
    names = column_names(source, path, title)
    lacking = [repr(name) for name in types if name not in names]
    if lacking:
        raise InputError(
            f"source '{source}', file '{path}': no column {', '.join(lacking)}; it has: "
            f"{', '.join(names)}. Use the file as published: {title}."
        )
    numbers_as_text = {name: CELLS if kind == NUMBER else kind for name, kind in types.items()}
    try:
        try:
            table = _parse(path, names, types)
        except pa.ArrowInvalid:
            table = _parse(path, names, numbers_as_text)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"source '{source}', file '{path}': {error}. The file is empty, cut short or damaged. "
            f"Get it again: {title}."
        ) from error
    if not len(table):
        raise InputError(
            f"source '{source}', file '{path}': no row below the names. Get it again: {title}."
        )
    frame = table.to_pandas(types_mapper={TEXT: pd.ArrowDtype(TEXT)}.get, split_blocks=True)
    return RawTable(source, path, frame)


def column_names(source: str, path: Path, title: str) -> list[str]:
    """What the first line says; a column without a name is named by its place."""
    if not path.is_file():
        raise InputError(
            f"source '{source}': no file '{path}'. Get {title} and put it there as published."
        )
    with path.open(encoding=_encoding(path), errors="replace") as stream:
        names = stream.readline().removeprefix("\ufeff").split("|")
    return [name.strip() or f"column {place}" for place, name in enumerate(names, start=1)]


def rows_of(table: RawTable, rows: np.ndarray) -> RawTable:
    """The table with some of its rows."""
    frame = table.frame if rows.all() else table.frame[rows]
    return RawTable(table.source, table.path, frame)


def rows_of_a_person(table: RawTable, entries: list[Counted]) -> RawTable:
    """The table without rows whose PtID, a `WORD`, is empty; counts what came in."""
    people = table.frame["PtID"].array
    entries += each(people, np.full(len(people), True), "in", f"rows in {table.path.name}")
    nobody = people.codes < 0
    entries += each(people, nobody, "dropped", f"rows in {table.path.name} without a PtID")
    return rows_of(table, ~nobody)


def each(people: pd.Categorical, rows: np.ndarray, effect: str, reason: str) -> list[Counted]:
    """One tally entry per person: how many of `rows` are theirs."""
    counts = np.bincount(people.codes[rows] + 1, minlength=len(people.categories) + 1)
    names = ("", *people.categories)
    return [(name, effect, reason, int(n)) for name, n in zip(names, counts, strict=True) if n]


def parsed(words: Sequence[str], codes: np.ndarray, forms: Sequence[str]) -> np.ndarray:
    """`words[codes]` as times, each word in the first of `forms` that fits; else, or at -1, NaT."""
    texts = pd.Series(words, dtype=object).str.strip()
    times = pd.Series(pd.NaT, index=texts.index, dtype="datetime64[ns]")
    for form in forms:
        times = times.fillna(pd.to_datetime(texts, format=form, errors="coerce"))
    return np.append(times.to_numpy(), np.datetime64("NaT"))[codes]


def one_below_the_other(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of all tables for `readings_frame`, NaN where a table lacks one."""
    names = {name for table in tables for name in table}
    return {
        name: np.concatenate([t.get(name, np.full(len(t["time"]), np.nan)) for t in tables])
        for name in names
    }


def _parse(path: Path, names: list[str], types: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.csv.read_csv(
        path,
        pa.csv.ReadOptions(
            use_threads=False, encoding=_encoding(path), column_names=names, skip_rows=1
        ),
        pa.csv.ParseOptions(delimiter="|"),
        pa.csv.ConvertOptions(
            include_columns=list(types),
            column_types=dict(types),
            null_values=NO_CELL,
            strings_can_be_null=True,
        ),
    )


def _encoding(path: Path) -> str:
    with path.open("rb") as stream:  # some tables of these downloads are UTF-16
        return "utf-16" if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf8"
