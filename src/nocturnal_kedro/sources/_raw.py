"""What raw tables of every source have in common: files that lack, columns, numbers, times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L

# What tables write where there is no number.
NO_NUMBERS = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", ".")
# What sensors write outside their range; the grid clips such readings and flags them.
GLUCOSE_WORDS = {"LOW": 39.0, "LO": 39.0, "HIGH": 401.0, "HI": 401.0}


def require_files(source: str, root: Path, pattern: str, title: str) -> list[Path]:
    """The files that `pattern` finds below `root`, sorted; `InputError` where there is none."""
    files = sorted(root.glob(pattern))
    if not files:
        raise InputError(
            f"source '{source}': no '{pattern}' under '{root}'. Get {title} and unpack it so that "
            f"it lies there, or give the folder that holds '{pattern.split('/')[0]}' as raw_root: "
            f'--params="sources={source},raw_root=path/to/data".'
        )
    return files


@dataclass(frozen=True)
class RawTable:
    """A raw table, its cells as text, with the place that an error must name."""

    source: str
    path: Path
    frame: pd.DataFrame  # of text; an empty cell is NaN

    def where(self, column: str) -> str:
        """The place to name: source, file, column."""
        return f"source '{self.source}', file '{self.path}', column '{column}'"

    def numbers(self, column: str) -> np.ndarray:
        """A column as float64, NaN where empty; `InputError` names the first cell that is none."""
        return self._numbers(column, self.frame[column])

    def glucose(self, column: str) -> np.ndarray:
        """Like `numbers`; the words of a sensor at the end of its range become 39 and 401."""
        cells = self.frame[column]
        if pd.api.types.is_numeric_dtype(cells):
            return cells.to_numpy(np.float64)
        words = cells.str.strip().str.upper().map(GLUCOSE_WORDS)
        values = self._numbers(column, cells.mask(words.notna()))
        return np.where(words.notna(), words.to_numpy(np.float64), values)

    def times(self, column: str, *formats: str) -> pd.Series:
        """A column as naive times, NaT where empty, each cell in one of `formats`."""
        cells = self.frame[column].str.strip()
        times = pd.Series(pd.NaT, index=cells.index, dtype="datetime64[ns]")
        for form in formats:
            open_ = times.isna() & cells.notna()
            if not open_.any():
                break
            times[open_] = pd.to_datetime(cells[open_], format=form, errors="coerce")
        wrong = times.isna() & cells.notna() & (cells != "")
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{self.where(column)}, row {self.frame.index[row] + 2}: '{cells.iloc[row]}' is "
                f"no time written like {' or '.join(map(_example, formats))} "
                f"({int(wrong.sum())} such cells). "
                f"Use the file as published, or correct these."
            )
        return times

    def _numbers(self, column: str, cells: pd.Series) -> np.ndarray:
        if not pd.api.types.is_numeric_dtype(cells):
            cells = cells.mask(cells.isin(NO_NUMBERS))
        numbers = pd.to_numeric(cells, errors="coerce")
        wrong = numbers.isna() & cells.notna()
        if not pd.api.types.is_numeric_dtype(cells):
            wrong &= cells.str.strip() != ""
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{self.where(column)}, row {self.frame.index[row] + 2}: '{cells.iloc[row]}' is "
                f"no number ({int(wrong.sum())} such cells). Only numbers and empty cells are "
                f"allowed there."
            )
        return numbers.to_numpy(np.float64)


def read_table(
    source: str,
    path: Path,
    required: Sequence[str | tuple[str, ...]],
    title: str,
    sep: str = ",",
    encoding: str = "utf-8-sig",
    numeric: Sequence[str] = (),
    may_be_empty: bool = False,
) -> RawTable:
    """Read a delimited file as text; of each tuple in `required` one column must be there.

    `numeric` columns are parsed as numbers at once, which is faster where a file has millions of
    rows; they fall back on text where a cell is none, so that `numbers` can name it. Raises
    `InputError` on an absent, empty, binary or truncated file and on an absent column.
    """
    if not path.is_file():
        raise InputError(
            f"source '{source}': no file '{path}'. Get {title} and put it there as published."
        )
    # Text stays what it is: a person may be called NA.
    how: dict[str, Any] = {
        "sep": sep, "encoding": encoding, "low_memory": False,
        "keep_default_na": False, "na_values": [""],
    }  # fmt: skip
    types: defaultdict[str, type] = defaultdict(lambda: str, dict.fromkeys(numeric, np.float64))
    try:
        try:
            frame = pd.read_csv(path, dtype=types, **how)
        except (ValueError, TypeError):
            frame = pd.read_csv(path, dtype=str, **how)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(
            f"source '{source}', file '{path}': {str(error).strip()}. The file is empty, cut short "
            f"or no text in {encoding}. Get it again: {title}."
        ) from error
    frame.columns = frame.columns.str.strip()
    lacking = [
        " or ".join(map(repr, one_of))
        for one_of in ((name,) if isinstance(name, str) else name for name in required)
        if not any(name in frame for name in one_of)
    ]
    if lacking:
        raise InputError(
            f"source '{source}', file '{path}': no column {', '.join(lacking)}; it has: "
            f"{', '.join(map(str, frame.columns))}. Use the file as published: {title}."
        )
    if frame.empty and not may_be_empty:
        raise InputError(
            f"source '{source}', file '{path}': no row below the names. Get it again: {title}; or "
            f"remove the file, if there is nothing to tell of that person."
        )
    return RawTable(source, path, frame)


def to_mg_dl(mmol_l: np.ndarray) -> np.ndarray:
    """Glucose in mg/dL from mmol/L; sensor words 39 and 401 of `RawTable.glucose` stay."""
    is_word = np.isin(mmol_l, tuple(GLUCOSE_WORDS.values()))
    return np.where(is_word, mmol_l, mmol_l * MG_DL_PER_MMOL_L)


def _example(form: str) -> str:
    return f"'{pd.Timestamp('2023-12-31 23:59:58').strftime(form)}'"
