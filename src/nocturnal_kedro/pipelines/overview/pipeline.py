"""Wiring of the overview: whatever is saved below `data_root`, of every experiment."""

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.overview import nodes


def create_pipeline() -> Pipeline:
    """Every saved score in one table."""
    compare_experiments = node(
        nodes.compare_experiments,
        ["saved_scores", "params:overview", "params:comparison"],
        "overview",
        name="compare_experiments",
    )
    return Pipeline([compare_experiments], tags="overview")
