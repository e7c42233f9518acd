"""Raw readings -> series -> corpus -> splits and origins."""

from __future__ import annotations

import pandas as pd

from nocturnal_kedro.series.corpus import Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import Readings
from nocturnal_kedro.series.splits import SplitOptions, build_splits


def grid_readings(
    readings: dict[str, Readings], grid: GridOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The 5-minute series of every person, and the tally of every row on the way."""
    return build_series(readings, grid)


def split_people(series: pd.DataFrame, splits: SplitOptions) -> pd.DataFrame:
    """The frozen table of who and when is in which split."""
    return build_splits(series, splits)


def assemble_corpus(series: pd.DataFrame, physiology: Physiology) -> Corpus:
    """The resident arrays, with insulin and carbs on board."""
    return build_corpus(series, physiology)


def freeze_origins(
    corpus: Corpus, splits: pd.DataFrame, series_tally: pd.DataFrame, task: Task
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frozen table of eligible origins, and the whole tally of rows and nights."""
    origins, nights_tally = build_origins(corpus, splits, task)
    return origins, pd.concat([series_tally, nights_tally], ignore_index=True)
