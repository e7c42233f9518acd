"""Each channel's mean and deviation in training rows; apart from the windows: it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from nocturnal_kedro.series.corpus import CHANNELS, Corpus
from nocturnal_kedro.series.origins import rows_of_split

GLUCOSE = "glucose_mg_dl"
Scaled = TypeVar("Scaled", bound=Any)  # an array or a tensor


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of every channel of the corpus, by name, in training rows."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def fit(cls, corpus: Corpus, train_rows: np.ndarray) -> Scaler:
        """Over the observed values in `train_rows`; a channel never observed keeps 0 and 1."""
        values = corpus.values_TC[train_rows].astype(np.float64)
        observed = corpus.observed_TC[train_rows]
        count = np.maximum(observed.sum(axis=0), 1)
        mean = (values * observed).sum(axis=0) / count
        variance = (((values - mean) ** 2) * observed).sum(axis=0) / count
        std = np.where(variance > 0, np.sqrt(variance), 1.0)
        return cls(
            dict(zip(CHANNELS, map(float, mean), strict=True)),
            dict(zip(CHANNELS, map(float, std), strict=True)),
        )

    def to_mg_dl(self, scaled: Scaled) -> Scaled:
        """Glucose back in mg/dL."""
        return scaled * self.std[GLUCOSE] + self.mean[GLUCOSE]


def fit_scaler(corpus: Corpus, splits: pd.DataFrame) -> Scaler:
    """The scaler of the training rows, and of no other row."""
    return Scaler.fit(corpus, rows_of_split(corpus, splits, "train"))
