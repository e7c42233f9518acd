"""Wiring of reporting: all models of an experiment into one table and one page."""

from collections.abc import Iterable

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.reporting import nodes


def create_pipeline(experiment: str, models: Iterable[str], baselines: Iterable[str]) -> Pipeline:
    """`{experiment}.leaderboard` and `{experiment}.report` from what evaluation saved."""
    everyone = [*models, *baselines]
    return Pipeline(
        [
            node(
                nodes.rank_models,
                ["params:comparison", *(f"{experiment}.{model}.scores" for model in everyone)],
                f"{experiment}.leaderboard",
                name="rank_models",
                namespace=experiment,
            ),
        ],
        tags="reporting",
    )
