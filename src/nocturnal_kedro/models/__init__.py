"""One module per model behind one small Protocol; the folder is the list of models.

A model module offers `Options` (a frozen pydantic model that rejects unknown keys, with its
`learning_rate` among them) and
`build(options, task) -> Forecaster`. It forecasts; it neither trains nor scores itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # torch costs seconds: the command line lists the models without it
    from torch import Tensor

    from nocturnal_kedro.series.windows import Batch, Scaler

# design of the quantile grid: WQL and CRPS integrate over it, 0.01 and 0.99 bound the 98 % interval
QUANTILE_LEVELS = (0.01, *(round(0.05 * k, 2) for k in range(1, 20)), 0.99)


class Forecast(NamedTuple):
    """What a model says of B windows, in scaled units."""

    point_BH: Tensor
    quantiles_BHQ: Tensor | None  # ascending in Q at QUANTILE_LEVELS; None for a point model


class Forecaster(Protocol):
    """A `torch.nn.Module` whose forward pass answers one `Batch`."""

    def __call__(self, batch: Batch) -> Forecast:
        """The forecast of every window; the targets in `batch` must not touch it."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A fitted model or baseline: all that is needed to forecast, and how it came about."""

    name: str
    kind: str  # "model" or "baseline"
    options: dict[str, Any]
    scaler: Scaler
    people: tuple[str, ...]  # "source/subject" of everybody in the training split
    state: dict[str, np.ndarray]
    record: dict[str, Any]  # corpus fingerprint, seconds, parameters, best epoch, versions
    log: pd.DataFrame  # one row per epoch; empty for a baseline
