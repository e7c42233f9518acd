"""Exponential smoothing of this window alone: Hyndman & Khandakar 2008, J Stat Softw 27(3).

Error, trend and damping are chosen for every window by AICc among the models that `model` and
`damped` allow, and the quantiles are that model's own normal prediction intervals. It has no
season: a day is 288 steps, where ETS goes up to 24, and a context holds less than two days. It
learns nothing from anybody else.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from nocturnal_kedro.baselines import History, last_observed
from nocturnal_kedro.models import INTERVALS, LOWER_ENDS, UPPER_ENDS, Answer
from nocturnal_kedro.series.nights import Nights, fill_forward
from nocturnal_kedro.series.schema import QUANTILE_LEVELS

FEWEST = 12  # slots from the first reading to the last that a model is fitted to: an hour


class Options(BaseModel, extra="forbid", frozen=True):
    """Which models are tried on how much of the context; chosen on the validation nights of AZT1D.

    A trend that does not die away leaves the range of glucose within the eight hours of a night.
    """

    # Error, trend, season: A additive, M multiplicative, N none, Z the better by AICc.
    model: str = Field(default="ZAN", pattern="^[AMZ][ANZ]N$")
    damped: bool | None = True  # whether the trend dies away; None: the better by AICc
    context_steps: int = Field(default=288, ge=FEWEST)  # the newest ones

    @model_validator(mode="after")
    def _trend_to_damp(self) -> Self:
        if self.damped and self.model[1] == "N":
            raise ValueError(
                f"model {self.model} has no trend that could be damped: set damped to false"
            )
        return self


def fit(history: History, options: Options) -> dict[str, np.ndarray]:
    """Learns nothing: the options are all there is to keep."""
    damped = -1 if options.damped is None else int(options.damped)
    return {
        "model": np.frombuffer(options.model.encode(), np.uint8),
        "damped": np.asarray(damped),
        "context_steps": np.asarray(options.context_steps),
    }


def forecast(state: dict[str, np.ndarray], nights: Nights) -> Answer:
    """Mean and quantiles of the model chosen for each window.

    A series starts at its first reading, and each gap holds the last reading before it. It ends at
    the newest reading, and is forecast by as many steps more as lie between that and the origin:
    nothing is made up after it. Where the readings span less than an hour or never change there is
    nothing to fit, and the newest one is held without any spread. NaN for a window without any
    reading.
    """
    from statsforecast.models import AutoETS

    damped = {0: False, 1: True}.get(int(state["damped"]))
    ets = AutoETS(season_length=1, model=state["model"].tobytes().decode(), damped=damped)
    point_NH = np.repeat(last_observed(nights.glucose_NL)[:, None], nights.horizon, axis=1)
    quantiles_NHQ = np.repeat(point_NH[..., None], len(QUANTILE_LEVELS), axis=-1)
    for window, glucose_K in enumerate(nights.glucose_NL[:, -int(state["context_steps"]) :]):
        [observed] = np.nonzero(~np.isnan(glucose_K))
        if not len(observed) or np.ptp(observed) + 1 < FEWEST or not np.ptp(glucose_K[observed]):
            continue
        series = fill_forward(glucose_K[observed[0] : observed[-1] + 1])
        unread = len(glucose_K) - 1 - observed[-1]
        with np.errstate(invalid="ignore"):  # the root of a variance of nil that rounding made < 0
            said = ets.forecast(series, h=unread + nights.horizon, level=list(INTERVALS))
        point_NH[window] = said["mean"][unread:]
        ends = (*LOWER_ENDS, "mean", *UPPER_ENDS)
        across_HQ = np.stack([said[end] for end in ends], axis=-1)[unread:]
        quantiles_NHQ[window] = np.where(np.isnan(across_HQ), point_NH[window, :, None], across_HQ)
    return Answer(point_NH, quantiles_NHQ)
