"""Wiring of training: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.experiments import Experiment, Lane
from nocturnal_kedro.pipelines.training import nodes


def shared_inputs(experiment: Experiment) -> list[str]:
    """What every training takes first."""
    tables = ("corpus", "splits", "origins", "audit")
    return [*map(experiment.shared, tables), experiment.parameter("task")]


def create_pipeline(
    experiment: Experiment, lanes: tuple[Lane, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """A fitted `{experiment}.{model}.model` for every lane and baseline."""
    fit_models = [_fit_model(experiment, lane, f"{experiment.name}.{lane.name}") for lane in lanes]
    fit_baselines = [
        node(
            update_wrapper(partial(nodes.fit_baseline, baseline=baseline), nodes.fit_baseline),
            [
                *shared_inputs(experiment),
                experiment.parameter("training"),
                "params:baseline_options",
                "trained",
            ],
            f"{experiment.name}.{baseline}.model",
            name="fit",
            namespace=f"{experiment.name}.{baseline}",
        )
        for baseline in baselines
    ]
    return Pipeline(fit_models + fit_baselines, tags="training")


def _fit_model(experiment: Experiment, lane: Lane, namespace: str) -> Node:
    fit = partial(nodes.fit_model, model=lane.model, seed=lane.seed)
    return node(
        update_wrapper(fit, nodes.fit_model),
        [
            *shared_inputs(experiment),
            experiment.parameter("training"),
            "params:hardware",
            f"params:model_options.{lane.model}",
            "answers",
            f"{namespace}.unfinished",
            "trained",
        ],
        f"{namespace}.model",
        name="fit",
        namespace=namespace,
    )
