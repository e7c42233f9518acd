"""Wiring of training: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.experiments import Experiment, Lane, Sweep
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


def create_sweep(experiment: Experiment, sweep: Sweep) -> Pipeline:
    """A trained artifact for every cell of the sweep: `{sweep}.cells` says which."""
    train = node(
        update_wrapper(partial(nodes.train_cells, sweep=sweep), nodes.train_cells),
        {
            **grounds_of(experiment, sweep),
            "audit": experiment.shared("audit"),
            "unfinished": f"{sweep.name}.cells.unfinished",
            "trained": "trained",
            "share": "params:share",
        },
        f"{sweep.name}.cells",
        name="train_cells",
        namespace=sweep.name,
    )
    return Pipeline([train], tags="training")


def grounds_of(experiment: Experiment, sweep: Sweep) -> dict[str, str]:
    """What the cells of a sweep are planned from."""
    return {
        "corpus": "corpus",
        "splits": "splits",
        "origins": experiment.shared("origins"),
        "task": experiment.parameter("task"),
        "cut": "params:splits",
        "training": experiment.parameter("training"),
        "hardware": "params:hardware",
        "options": f"params:{sweep.name}",
        "model_options": "params:model_options",
        "baseline_options": "params:baseline_options",
    }


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
