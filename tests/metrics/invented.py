"""Invented forecasts as evaluation saves them, and what was said and came of nights."""

import numpy as np
import pandas as pd
from scipy.stats import norm

from nocturnal_kedro.metrics.calibration import LEVELS
from nocturnal_kedro.metrics.forecasts import QUANTILES, RAW, Forecasts, lay_out

# Source, person, split, nights: one has nights in two splits, one a name that another has, too.
PEOPLE = (
    ("s", "a", "patient", 3),
    ("s", "b", "temporal", 2),
    ("s", "b", "validation", 3),
    ("t", "a", "temporal", 5),
)


def invent_forecasts(
    seed: int = 0, people: tuple = PEOPLE, horizon: int = 96, at: str = "00:00"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecasts and the frozen table; a tenth of the targets is unobserved."""
    draw = np.random.default_rng(seed)
    first = pd.Timestamp(f"2026-01-05 {at}")
    rows, day = [], 0
    for source, person, split, nights in people:
        rows += [(source, person, first + pd.Timedelta(days=day + k), split) for k in range(nights)]
        day += nights
    origins = pd.DataFrame(rows, columns=["source", "subject", "origin", "split"])
    frame = origins.drop(columns="split").merge(
        pd.DataFrame({"step": range(1, horizon + 1)}), how="cross"
    )
    frame["target_mg_dl"] = draw.uniform(45, 300, len(frame)).round(1)
    frame.loc[draw.random(len(frame)) < 0.1, "target_mg_dl"] = np.nan
    frame["forecast_mg_dl"] = draw.uniform(50, 300, len(frame))
    spread = draw.uniform(20, 70, len(frame))[:, None] * norm.ppf(LEVELS)
    point = frame["forecast_mg_dl"].to_numpy()[:, None]
    levels = {QUANTILES: point + spread + 3, RAW: point + spread / 2 - 5}
    quantiles = [pd.DataFrame(of.astype(np.float32), columns=to) for to, of in levels.items()]
    return pd.concat([frame, *quantiles], axis=1), origins


def laid_out(seed: int = 0, people: tuple = PEOPLE, **how: object) -> Forecasts:
    return lay_out(*invent_forecasts(seed, people, **how), "m")
