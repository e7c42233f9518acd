"""Grounds of a sweep: three sources of four people, one of them of 15-minute sensors."""

from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.series.corpus import build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import TEST_SPLITS, Readings
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.training.cells import Cell, Grounds
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.options import Training
from tests.conftest import invent_readings

TASK = Task(context_steps=288, horizon_steps=48)
CUT = SplitOptions(temporal_share=0.25, validation_temporal_share=0.25)
TRAINING = Training(epochs=1, steps_per_epoch=2, batch_size=8)
TINY = {"preset": "tiny"}


def invent_data(sources: dict[str, int], days: int = 16, slow: str = "", short: str = "") -> Data:
    """People of each source; of `slow` with 15-minute sensors, `short` ("a/p1") for 9 days only.

    Nothing of insulin or carbs is on record of anybody's p0.
    """
    readings = {}
    for seed, (source, people) in enumerate(sources.items()):
        frame = invent_readings(people, days, seed).frame
        if source == slow:
            frame = frame.assign(
                glucose_mg_dl=frame["glucose_mg_dl"].where(frame["time"].dt.minute % 15 == 0)
            )
        unrecorded = frame["subject"] == "p0"
        frame.loc[unrecorded, ["basal_u_h", "basal_minutes", "bolus_u", "carbs_g"]] = np.nan
        after = frame["time"] >= frame["time"].min() + pd.Timedelta(days=9)
        cut_off = (source + "/" + frame["subject"].astype(str) == short) & after
        frame = frame[~cut_off].reset_index(drop=True)
        readings[source] = Readings(frame, invent_readings(1, 1).tally)
    series = build_series(readings, GridOptions())[0]
    corpus, splits = build_corpus(series, Physiology()), build_splits(series, CUT)
    return Data(corpus, splits, build_origins(corpus, splits, TASK)[0], TASK)


def grounds_of(data: Data, seeds: tuple[int, ...] = (3, 4), **changed: Any) -> Grounds:
    given: dict[str, Any] = {
        "cut": CUT,
        "training": TRAINING,
        "models": {"ttm": TINY},
        "baselines": {"last_value": {}, "climatology": {}},
        "seeds": seeds,
    }
    return Grounds(data=data, **given | changed)


def nights_tested(data: Data) -> pd.DataFrame:
    """Its test nights, by person and time."""
    tested = data.origins[data.origins["split"].isin(TEST_SPLITS)]
    return tested.sort_values(["source", "subject", "origin"], ignore_index=True)


def people_in(splits: pd.DataFrame, *names: str) -> set[str]:
    own = splits[splits["split"].isin(names)]
    return set(own["source"] + "/" + own["subject"])


def assert_sound(cells: list[Cell], named: set[str]) -> None:
    """No two cells stand in one place, and what each is compared with is there."""
    places = [(cell.question, cell.name, cell.model, cell.seed, id(cell.on_test))
              for cell in cells]  # fmt: skip
    assert len(set(places)) == len(places)
    for cell in cells:
        beside = {
            other.name
            for other in cells
            if other.model == cell.model and other.seed == cell.seed
        } | {other.name for other in cells if other.seed is None}  # fmt: skip
        assert cell.against in beside | named | {""}, cell
