"""One module per baseline that every table carries; the folder is the list of baselines.

A baseline module offers `Options`, `fit(history, options) -> state` (named arrays) and
`forecast(state, nights) -> Answer`. Baselines see what models see, unscaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nocturnal_kedro.series.nights import Nights


@dataclass(frozen=True)
class History:
    """All that a baseline may learn from: the training rows, and windows inside them."""

    glucose_T: np.ndarray  # mg/dL, NaN where unobserved
    person_T: np.ndarray
    slot_of_day_T: np.ndarray
    people: int
    nights: Nights  # from the anchor
    target_NH: np.ndarray  # mg/dL, NaN where unobserved
    # Windows drawn around the anchor and what came, gathered when asked for: few need so many.
    sample: Callable[[], tuple[Nights, np.ndarray]]


def last_observed(glucose_NL: np.ndarray) -> np.ndarray:
    """The newest observed value of each window, (N,)."""
    newest = glucose_NL.shape[1] - 1 - np.argmax(~np.isnan(glucose_NL[:, ::-1]), axis=1)
    return glucose_NL[np.arange(len(glucose_NL)), newest]
