"""Wiring of evaluation: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.evaluation import nodes


def create_pipeline(
    experiment: str, models: tuple[str, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """`{experiment}.{model}.forecasts`, `.cost` and `.scores` of every model and baseline."""
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
            update_wrapper(score, nodes.score),
            [f"{namespace}.forecasts", "origins", f"{namespace}.cost"],
            f"{namespace}.scores",
            name="score",
            namespace=namespace,
        ),
    ]
