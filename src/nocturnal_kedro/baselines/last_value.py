"""Tonight stays where it is: the newest reading, held for the whole horizon."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.baselines import History, last_observed
from nocturnal_kedro.models import Answer
from nocturnal_kedro.series.nights import Nights


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose."""


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """Learns nothing."""
    return {}


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Points alone."""
    return Answer(np.repeat(last_observed(nights.glucose_NL)[:, None], nights.horizon, axis=1))
