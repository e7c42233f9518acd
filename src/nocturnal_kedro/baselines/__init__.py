"""One module per baseline that every table carries; the folder is the list of baselines.

A baseline module offers `Options`, `fit(history, options) -> state` (named arrays) and
`forecast(state, nights) -> (N, H)` in mg/dL. Baselines see what models see, unscaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNSEEN = -1  # person index of somebody who is not in the training split


@dataclass(frozen=True)
class Nights:
    """N windows before their origins, in mg/dL."""

    glucose_NL: np.ndarray  # NaN where unobserved; the last column is the origin's slot
    person_N: np.ndarray  # index of the person among the trained people, or UNSEEN
    slot_of_day_N: np.ndarray  # of the origin
    horizon: int


@dataclass(frozen=True)
class History:
    """All that a baseline may learn from: the training rows, and windows inside them."""

    glucose_T: np.ndarray  # mg/dL, NaN where unobserved
    person_T: np.ndarray
    slot_of_day_T: np.ndarray
    people: int
    nights: Nights
    target_NH: np.ndarray  # mg/dL, NaN where unobserved


def last_observed(glucose_NL: np.ndarray) -> np.ndarray:
    """The newest observed value of each window, (N,)."""
    newest = glucose_NL.shape[1] - 1 - np.argmax(~np.isnan(glucose_NL[:, ::-1]), axis=1)
    return glucose_NL[np.arange(len(glucose_NL)), newest]
