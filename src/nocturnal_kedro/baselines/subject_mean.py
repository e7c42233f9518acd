"""The person's own mean: over the training rows or, for a person never seen, over the context."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.baselines import History
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import UNSEEN, Nights


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose."""


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """The mean of every trained person, (people,) in mg/dL; NaN without a reading."""
    observed = ~np.isnan(history.glucose_T)
    person = history.person_T[observed]
    count = np.bincount(person, minlength=history.people)
    total = np.bincount(person, weights=history.glucose_T[observed], minlength=history.people)
    return {"mean_P": np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)}


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Points alone."""
    own_N = np.append(state["mean_P"], np.nan)[nights.person_N]  # UNSEEN is the appended NaN
    assert UNSEEN == -1
    mean_N = np.where(np.isnan(own_N), np.nanmean(nights.glucose_NL, axis=1), own_N)
    return Answer(np.repeat(mean_N[:, None], nights.horizon, axis=1))
