"""Windows as plain arrays in their natural units, for what does not run on torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Nights:
    """N windows up to their origins; NaN where unobserved, the last column is the origin's slot."""

    glucose_NL: np.ndarray  # mg/dL
    past: dict[str, np.ndarray]  # channel of the corpus -> (N, L), in its unit
    ahead: dict[str, np.ndarray]  # what is known of the future by channel -> (N, H)
    person_N: np.ndarray  # index of the person among the trained people, or UNSEEN
    slot_of_day_N: np.ndarray  # of the origin
    horizon: int


UNSEEN = -1  # person index of somebody who is not in the training split


def fill_forward(values_T: np.ndarray) -> np.ndarray:
    """Each gap holds the last value before it; one at the start holds the first value there is."""
    seen = ~np.isnan(values_T)
    last_T = np.maximum.accumulate(np.where(seen, np.arange(len(values_T)), seen.argmax()))
    return values_T[last_T]
