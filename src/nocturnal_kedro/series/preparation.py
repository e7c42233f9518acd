"""One part of a source made ready: its gridded series, its tally, and the marks of its readings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nocturnal_kedro.series import grid, overlap, schema
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.overlap import mark_readings
from nocturnal_kedro.series.schema import Readings

# What a prepared part follows from, beside the raw files and their reader.
CODE = (Path(__file__), *(Path(str(module.__file__)) for module in (grid, overlap, schema)))


@dataclass(frozen=True)
class Prepared:
    """Frames as in docs/datasets.md, and what they are made from."""

    series: pd.DataFrame
    tally: pd.DataFrame
    marks: pd.DataFrame
    made_from: dict[str, Any]


def prepare(
    source: str, readings: Readings, options: GridOptions, made_from: dict[str, Any]
) -> Prepared:
    """Grid and mark the readings of a part; raises `InputError` as the grid does."""
    ordered = order_readings(source, readings)
    series, tally = grid_people(ordered, options)
    schema.SERIES.validate(series)
    return Prepared(
        series=series,
        tally=pd.concat([readings.tally.assign(source=source), tally], ignore_index=True),
        marks=mark_readings(ordered),
        made_from=made_from,
    )
