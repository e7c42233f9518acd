"""Tonight stays where it is: the newest reading, held for the whole horizon."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.baselines import History, Nights, last_observed


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose."""


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """Learns nothing."""
    return {}


def forecast(state: dict[str, np.ndarray], nights: Nights) -> np.ndarray:
    """(N, H) in mg/dL."""
    return np.repeat(last_observed(nights.glucose_NL)[:, None], nights.horizon, axis=1)
