"""All saved scores -> one table of every experiment."""

from __future__ import annotations

import pandas as pd

from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.overview import Overview, build_overview


def compare_experiments(
    saved_scores: pd.DataFrame, overview: Overview, comparison: Comparison
) -> pd.DataFrame:
    """One row per experiment, data, source, model, cell and version, ranked by validation alone."""
    return build_overview(saved_scores, overview, comparison)
