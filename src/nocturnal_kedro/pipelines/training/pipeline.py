"""Wiring of training: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.training import nodes

SHARED = ["corpus", "splits", "origins", "audit", "params:task"]


def create_pipeline(
    experiment: str, models: tuple[str, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """A fitted `{experiment}.{model}.model` for every model and baseline."""
    fit_models = [
        node(
            update_wrapper(partial(nodes.fit_model, model=model), nodes.fit_model),
            [
                *SHARED,
                "params:training",
                "params:hardware",
                f"params:model_options.{model}",
                "answers",
                f"{experiment}.{model}.unfinished",
            ],
            f"{experiment}.{model}.model",
            name="fit",
            namespace=f"{experiment}.{model}",
        )
        for model in models
    ]
    fit_baselines = [
        node(
            update_wrapper(partial(nodes.fit_baseline, baseline=baseline), nodes.fit_baseline),
            [*SHARED, "params:training", "params:baseline_options"],
            f"{experiment}.{baseline}.model",
            name="fit",
            namespace=f"{experiment}.{baseline}",
        )
        for baseline in baselines
    ]
    return Pipeline(fit_models + fit_baselines, tags="training")
