"""What many tests start from: readings of a few invented people, and where real data may lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.series.corpus import Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import Readings, make_tally, readings_frame
from nocturnal_kedro.series.splits import SplitOptions, build_splits

PROJECT = Path(__file__).parents[1]
RAW_ROOT = Path(os.environ.get("NOCTURNAL_RAW_ROOT", PROJECT.parent / "shared" / "data"))
DAY_SLOTS = 288


def invent_readings(people: int = 8, days: int = 14, seed: int = 0, **changes: float) -> Readings:
    """Smooth glucose with meals and boluses that move it, every 5 minutes on the grid."""
    parts = []
    for person in range(people):
        draw = np.random.default_rng([seed, person])
        slots = days * DAY_SLOTS
        hours = np.arange(slots) / 12
        wave = 35 * np.sin(2 * np.pi * (hours + draw.uniform(0, 24)) / 24)
        glucose = 140 + draw.normal(0, 12) + wave + np.cumsum(draw.normal(0, 1.5, slots)) % 30
        bolus = np.where(draw.random(slots) < 4 / DAY_SLOTS, draw.uniform(1, 6, slots), np.nan)
        carbs = np.where(np.isnan(bolus), np.nan, np.round(bolus * 10))
        parts.append(
            readings_frame(
                {
                    "subject": np.full(slots, f"p{person}"),
                    "time": pd.date_range("2026-01-05", periods=slots, freq="5min"),
                    "glucose_mg_dl": np.clip(glucose, 45, 390),
                    "basal_u_h": np.full(slots, 0.8),
                    "basal_minutes": np.full(slots, 5.0),
                    "bolus_u": bolus,
                    "carbs_g": carbs,
                }
            )
        )
    return Readings(pd.concat(parts, ignore_index=True), make_tally([]))


def grid(readings: Readings, source: str = "invented") -> pd.DataFrame:
    return build_series({source: readings}, GridOptions())[0]


@pytest.fixture(scope="session")
def series() -> pd.DataFrame:
    return grid(invent_readings())


@pytest.fixture(scope="session")
def splits(series: pd.DataFrame) -> pd.DataFrame:
    return build_splits(series, SplitOptions())


@pytest.fixture(scope="session")
def corpus(series: pd.DataFrame) -> Corpus:
    return build_corpus(series, Physiology())


@pytest.fixture(scope="session")
def task() -> Task:
    return Task()


@pytest.fixture(scope="session")
def raw_root() -> Path:
    if not RAW_ROOT.is_dir():
        pytest.skip(f"no real recordings at {RAW_ROOT}; set NOCTURNAL_RAW_ROOT to use them")
    return RAW_ROOT
