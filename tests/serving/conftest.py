"""A simulated cohort, a model fitted to it, what an evaluation saved of it, and how one asks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.metrics.events import foresee_lows
from nocturnal_kedro.metrics.forecasts import NIGHT, lay_out
from nocturnal_kedro.metrics.outcomes import describe_nights
from nocturnal_kedro.series.corpus import build_corpus
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import READING_COLUMNS
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.serving.tonight import About, Served, make_ready
from nocturnal_kedro.sources import simulated
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_baseline, fit_model
from nocturnal_kedro.training.forecast import forecast
from nocturnal_kedro.training.options import Training

# Not the usual ones: who serves the model must be told them by its artifact.
PHYSIOLOGY = Physiology(insulin_action_minutes=300, carbs_peak_minutes=55)
QUICK = Training(epochs=1, steps_per_epoch=5)


@dataclass(frozen=True)
class Cohort:
    """What everybody's records say, and the corpus of it."""

    readings: pd.DataFrame
    data: Data
    outcomes: pd.DataFrame

    def night(self, split: str = "patient") -> pd.Series:
        """One whose context is whole: at least three days after the person's first reading."""
        nights = self.data.origins[self.data.origins["split"] == split]
        first = nights.groupby(["source", "subject"])["origin"].transform("min")
        return nights[nights["origin"] >= first + pd.Timedelta(days=3)].iloc[0]


@dataclass(frozen=True)
class Saved:
    """What an evaluation has saved of an artifact."""

    forecasts: pd.DataFrame
    lows: pd.DataFrame


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    readings = simulated.read((), simulated.Options(subjects=8, days=14))
    series, _ = grid_people(order_readings("simulated", readings), GridOptions())
    corpus, splits = build_corpus(series, PHYSIOLOGY), build_splits(series, SplitOptions())
    origins = build_origins(corpus, splits, Task())[0]
    data = Data(corpus, splits, origins, Task())
    return Cohort(readings.frame, data, describe_nights(corpus, origins, Task()))


@pytest.fixture(scope="session")
def ttm(cohort: Cohort) -> Artifact:
    return fit_model("ttm", {"preset": "tiny"}, cohort.data, QUICK)


@pytest.fixture(scope="session")
def saved(ttm: Artifact, cohort: Cohort) -> Saved:
    return evaluate(ttm, cohort)


@pytest.fixture(scope="session")
def about(ttm: Artifact, cohort: Cohort, saved: Saved) -> About:
    return About(
        "nocturnal_point/3", "nocturnal_point", "f" * 64, None, saved.lows, cohort.outcomes
    )


@pytest.fixture(scope="session")
def served(ttm: Artifact, about: About) -> Served:
    return make_ready(ttm, about)


def baseline(name: str, cohort: Cohort, **given: Any) -> Artifact:
    return fit_baseline(name, given, cohort.data, QUICK)


def evaluate(artifact: Artifact, cohort: Cohort) -> Saved:
    data = cohort.data
    forecasts, _ = forecast(artifact, data.corpus, data.splits, data.origins)
    lows = foresee_lows(lay_out(forecasts, data.origins, artifact.name), artifact.spread)
    lows.insert(0, "model", artifact.name)
    lows.insert(1, "data", artifact.record["data"])
    return Saved(forecasts, lows)


def of_night(table: pd.DataFrame, night: pd.Series) -> pd.DataFrame:
    return table[(table[NIGHT] == night[NIGHT]).all(axis=1)]


def ask(cohort: Cohort, night: pd.Series, days: float = 14) -> dict[str, Any]:
    """As a client would: what the person's record says of so many days up to the origin."""
    own = cohort.readings[cohort.readings["subject"] == night["subject"]].sort_values("time")
    origin = night["origin"]
    own = own[(own["time"] <= origin) & (own["time"] > origin - pd.Timedelta(days=days))]
    rows = [
        {"time": row["time"].isoformat()}
        | {
            "glucose" if name == "glucose_mg_dl" else name: float(row[name])
            for name in READING_COLUMNS
            if not np.isnan(row[name])
        }
        for row in own.to_dict("records")
    ]
    return {"origin": origin.isoformat(), "unit": "mg/dL", "readings": rows}
