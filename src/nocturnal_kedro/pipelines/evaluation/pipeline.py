"""Wiring of evaluation: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.evaluation import nodes

SCORED = ("scores", "night_scores", "level_scores", "low_readings", "translated")


def create_pipeline(
    experiment: str, models: tuple[str, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """Of every model and baseline its forecasts, lows and cost, and all scores of them."""
    return Pipeline(
        [
            part
            for model in (*models, *baselines)
            for part in _one_model(experiment, model, f"{experiment}.{model}")
        ],
        tags="evaluation",
    )


def _one_model(experiment: str, model: str, namespace: str) -> list[Node]:
    score = partial(nodes.score, experiment=experiment, model=model)
    return [
        node(
            nodes.forecast_nights,
            [f"{namespace}.model", "corpus", "splits", "origins", "params:hardware", "answers"],
            [f"{namespace}.forecasts", f"{namespace}.cost"],
            name="forecast",
            namespace=namespace,
        ),
        node(
            nodes.foresee,
            [f"{namespace}.model", f"{namespace}.forecasts", "origins", f"{namespace}.cost"],
            f"{namespace}.lows",
            name="foresee",
            namespace=namespace,
        ),
        node(
            update_wrapper(score, nodes.score),
            [f"{namespace}.forecasts", "origins", f"{namespace}.cost", "params:evaluation"],
            [f"{namespace}.{kind}" for kind in SCORED],
            name="score",
            namespace=namespace,
        ),
    ]
