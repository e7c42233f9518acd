"""The experiments, and the pipelines that `kedro run --pipelines=NAME` knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kedro.framework.project import pipelines as project_pipelines
from kedro.pipeline import Pipeline

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.pipelines import (
    data_processing,
    evaluation,
    migration,
    overview,
    reporting,
    training,
    tuning,
)
from nocturnal_kedro.pipelines.experiments import Experiment, Sweep, lanes_of

# Each, like every sweep (see `nocturnal_kedro.sweeps`), is composed of the same four pipelines.
EXPERIMENTS = {
    row.name: row
    for row in (
        Experiment("nocturnal_point"),
        Experiment("nocturnal_probabilistic", own=("comparison",), adds=("cards",)),
        Experiment("prandial", own=("task",), adds=("meals",)),
    )
}
DEFAULT = "nocturnal_point"
STAGES = ("data_processing", "training", "evaluation", "reporting")

# What parameters choose: see `select`.
_selected: dict[str, Any] = {}


def select(parameters: dict[str, Any]) -> None:
    """Make the pipelines for what these parameters name, and no others.

    `models` and `seeds`: lists, or words separated by spaces; every baseline runs beside them
    anyway. `experiment`: whose stages run alone, and which one `tuning` searches, for `model`.
    Raises `InputError` on an unknown name, and where a baseline is to be searched.
    """
    chosen = {
        "models": _models(parameters["models"]),
        "seeds": _seeds(parameters["seeds"]),
        "experiment": require_known(
            "experiment", str(parameters["experiment"]), {*EXPERIMENTS, *plugins.names("sweep")}
        ),
        "model": plugins.require("model", _searchable(parameters["model"])),
    }
    _selected.update(chosen)
    project_pipelines.configure(__name__)  # forget pipelines made for another selection


def register_pipelines() -> dict[str, Pipeline]:
    """Every pipeline by name; `__default__` is the main experiment, whole."""
    models, seeds = _selected.get("models", plugins.names("model")), _selected.get("seeds", ())
    baselines, lanes = plugins.names("baseline"), lanes_of(models, seeds)

    def stages_of(name: str) -> dict[str, Pipeline]:
        if name in EXPERIMENTS:
            row = EXPERIMENTS[name]
            return {
                "data_processing": data_processing.create_pipeline(row),
                "training": training.create_pipeline(row, lanes, baselines),
                "evaluation": evaluation.create_pipeline(row, lanes, baselines),
                "reporting": reporting.create_pipeline(row, lanes, baselines),
            }
        row, sweep = Experiment(name), Sweep(name, models, baselines, seeds)
        return {
            "data_processing": data_processing.create_pipeline(row),
            "training": training.create_sweep(row, sweep),
            "evaluation": evaluation.create_sweep(row, sweep),
            "reporting": reporting.create_sweep(row, name),
        }

    every = (*EXPERIMENTS, *plugins.names("sweep"))
    registered = {name: sum(stages_of(name).values(), Pipeline([])) for name in every}
    chosen = _selected.get("experiment", DEFAULT)
    registered |= stages_of(chosen)
    registered["tuning"] = tuning.create_pipeline(
        EXPERIMENTS.get(chosen, EXPERIMENTS[DEFAULT]), _selected.get("model", "ttm")
    )
    registered["overview"] = overview.create_pipeline()
    registered["migrate_ttm"] = migration.create_pipeline()
    registered["__default__"] = registered[DEFAULT]
    return registered


def _models(names: str | Sequence[str] | None) -> tuple[str, ...]:
    wanted = names.split() if isinstance(names, str) else list(names or ())
    baselines = plugins.names("baseline")
    for name in wanted:
        if name not in baselines:
            plugins.require("model", name)
    if not wanted:
        raise InputError(
            f"'models' is empty; name one or more of {', '.join(plugins.names('model'))}, e.g. "
            f'--params="models=ttm".'
        )
    return tuple(dict.fromkeys(name for name in wanted if name not in baselines))


def _seeds(given: str | int | Sequence[int] | None) -> tuple[int, ...]:
    words = str(given).split() if isinstance(given, str | int) else list(given or ())
    try:
        seeds = tuple(dict.fromkeys(int(word) for word in words))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"'seeds' is {given!r}; it holds whole numbers, e.g. --params=\"seeds=1 2 3\", or "
            f"nothing, where training.seed is the one."
        ) from error
    if any(seed < 0 for seed in seeds):
        raise InputError(f"'seeds' is {given!r}; a seed is 0 or more.")
    return seeds


def _searchable(model: object) -> str:
    if model in plugins.names("baseline"):
        raise InputError(
            f"model '{model}' is a baseline, which is fitted in one go and has no trials; known: "
            f"{', '.join(plugins.names('model'))}."
        )
    return str(model)
