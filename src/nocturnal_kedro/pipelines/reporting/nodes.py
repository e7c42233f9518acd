"""Saved scores and forecasts -> leaderboard and report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nocturnal_kedro.metrics.compare import Comparison, build_leaderboard


def rank_models(comparison: Comparison, *scores: pd.DataFrame) -> pd.DataFrame:
    """One row per test split and model, best first."""
    return build_leaderboard(pd.concat(scores, ignore_index=True), comparison)
