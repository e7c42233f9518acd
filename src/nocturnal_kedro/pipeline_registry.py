"""The experiments, and the pipelines that `kedro run --pipelines=NAME` knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from kedro.framework.project import pipelines as project_pipelines
from kedro.pipeline import Pipeline

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.pipelines import data_processing, evaluation, reporting, training, tuning

# One row per experiment; each is composed of the same four pipelines.
EXPERIMENTS = ("nocturnal_point",)
DEFAULT = "nocturnal_point"

_selected: list[tuple[str, ...]] = []
_searched = [(DEFAULT, "ttm")]  # by the pipeline `tuning`, until parameters say


def select_models(names: str | Sequence[str] | None) -> None:
    """Make pipelines for these models only; every baseline runs beside them anyway.

    `names` is the parameter `models`: a list, or names separated by spaces. Raises `InputError`
    on an unknown name.
    """
    wanted = names.split() if isinstance(names, str) else list(names or ())
    baselines = plugins.names("baseline")
    for name in wanted:
        if name not in baselines:
            plugins.require("model", name)
    models = tuple(dict.fromkeys(name for name in wanted if name not in baselines))
    if not wanted:
        raise InputError(
            f"'models' is empty; name one or more of {', '.join(plugins.names('model'))}, e.g. "
            f'--params="models=ttm".'
        )
    _selected[:] = [models]
    project_pipelines.configure(__name__)  # forget pipelines made for another selection


def select_search(experiment: object, model: object) -> None:
    """Make the pipeline `tuning` for this model of this experiment.

    Raises `InputError` on an unknown name, and on a baseline: nothing of it is trained.
    """
    require_known("experiment", str(experiment), EXPERIMENTS)
    if model in plugins.names("baseline"):
        raise InputError(
            f"model '{model}' is a baseline, which is fitted in one go and has no trials; known: "
            f"{', '.join(plugins.names('model'))}."
        )
    _searched[:] = [(str(experiment), plugins.require("model", str(model)))]
    project_pipelines.configure(__name__)


def register_pipelines() -> dict[str, Pipeline]:
    """Every pipeline by name; `__default__` is the main experiment, whole."""
    models = _selected[0] if _selected else plugins.names("model")
    baselines = plugins.names("baseline")
    stages = {
        "data_processing": [data_processing.create_pipeline()],
        "training": [training.create_pipeline(e, models, baselines) for e in EXPERIMENTS],
        "evaluation": [evaluation.create_pipeline(e, models, baselines) for e in EXPERIMENTS],
        "reporting": [reporting.create_pipeline(e, models, baselines) for e in EXPERIMENTS],
    }
    registered = {name: reduce(add, parts) for name, parts in stages.items()}
    for number, experiment in enumerate(EXPERIMENTS):
        registered[experiment] = registered["data_processing"] + reduce(
            add, (stages[stage][number] for stage in ("training", "evaluation", "reporting"))
        )
    registered["tuning"] = tuning.create_pipeline(*_searched[0])
    registered["__default__"] = registered[DEFAULT]
    return registered
