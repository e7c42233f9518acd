"""Wiring of a search: one model of one experiment, which the parameters name."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.training.pipeline import SHARED
from nocturnal_kedro.pipelines.tuning import nodes


def create_pipeline(experiment: str, model: str) -> Pipeline:
    """The trials of a search, and the run that takes the best of them."""
    search = node(
        update_wrapper(partial(nodes.search, experiment=experiment, model=model), nodes.search),
        [
            *SHARED,
            "params:training",
            "params:hardware",
            f"params:model_options.{model}",
            "params:tuning",
            "params:trials",
            f"{experiment}.{model}.searches",
            "run_record",
        ],
        [f"{experiment}.{model}.trials", f"{experiment}.{model}.winner"],
        name="search",
        namespace=f"{experiment}.{model}",
    )
    return Pipeline([search], tags="tuning")
