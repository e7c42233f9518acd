"""Wiring of a search: one model of one experiment, which the parameters name."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.experiments import Experiment
from nocturnal_kedro.pipelines.training.pipeline import shared_inputs
from nocturnal_kedro.pipelines.tuning import nodes


def create_pipeline(experiment: Experiment, model: str) -> Pipeline:
    """The trials of a search, and the run that takes the best of them."""
    search = node(
        update_wrapper(
            partial(nodes.search, experiment=experiment.name, model=model), nodes.search
        ),
        [
            *shared_inputs(experiment),
            experiment.parameter("training"),
            "params:hardware",
            f"params:model_options.{model}",
            "params:tuning",
            "params:trials",
            f"{experiment.name}.{model}.searches",
            "run_record",
        ],
        [f"{experiment.name}.{model}.trials", f"{experiment.name}.{model}.winner"],
        name="search",
        namespace=f"{experiment.name}.{model}",
    )
    return Pipeline([search], tags="tuning")
