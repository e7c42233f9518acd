"""Wiring of reporting: all models of an experiment into its tables and one page."""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.experiments import Experiment, Lane
from nocturnal_kedro.pipelines.reporting import nodes


def create_pipeline(
    experiment: Experiment, lanes: tuple[Lane, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """The tables of `nodes.TABLES` and `{experiment}.report` from what evaluation saved.

    Errors are of all training seeds; figures, alarms and bands of each model's first.
    """
    name = experiment.name
    models = tuple(lane.name for lane in lanes if lane.first)
    further = tuple(lane.name for lane in lanes if not lane.first)

    def of_each(kind: str, names: tuple[str, ...] = (*models, *baselines)) -> list[str]:
        return [f"{name}.{model}.{kind}" for model in names]

    def of_models(*kinds: str) -> dict[str, str]:
        made = [entry for kind in kinds for entry in of_each(kind)]
        return {entry.removeprefix(f"{name}."): entry for entry in made}

    def of_seeds(kind: str) -> list[str]:
        return of_each(kind) + of_each(kind, further)

    def make(function: Callable[..., Any], inputs: Any, *outputs: str) -> Node:
        made = [f"{name}.{output}" for output in outputs]
        return node(
            function,
            inputs,
            made if len(made) > 1 else made[0],
            name=function.__name__,
            namespace=name,
        )

    comparison = experiment.parameter("comparison")
    write_report = update_wrapper(
        partial(nodes.write_report, experiment=name, models=models, baselines=baselines),
        nodes.write_report,
    )
    shown = {
        "comparison": comparison,
        "evaluation": "params:evaluation",
        "made_from": "made_from",
        "run_record": "run_record",
        **{table: f"{name}.{table}" for table in nodes.TABLES},
        **{table: experiment.shared(table) for table in nodes.OF_DATA},
        **of_models(*nodes.OF_MODELS),
    }
    added = []
    if "meals" in experiment.adds:
        added.append(make(nodes.judge_meals, [comparison, *of_seeds("peaks")], "meals"))
        shown |= {"meals": f"{name}.meals", **of_models("courses")}
    if "cards" in experiment.adds:
        shown |= {f"{model}.cards": f"{name}.{model}.cards" for model in models[:1]}
    return Pipeline(
        [
            *added,
            make(
                nodes.tell_in_markdown,
                [f"{name}.leaderboard", experiment.parameter("task")],
                "tables",
            ),
            make(
                nodes.rank_models,
                [
                    comparison,
                    "params:evaluation",
                    experiment.shared("origins"),
                    *of_seeds("scores"),
                ],
                "leaderboard",
            ),
            make(
                nodes.compare_pairs,
                [comparison, *of_seeds("night_scores")],
                "pairs",
            ),
            make(
                nodes.judge_alarms,
                [comparison, experiment.shared("outcomes"), *of_each("lows")],
                "alarms",
                "trade_off",
                "reliability",
            ),
            make(
                nodes.judge_readings,
                [comparison, *of_each("low_readings")],
                "readings",
            ),
            make(
                nodes.check_levels,
                [comparison, *of_each("level_scores")],
                "calibration",
                "bands",
            ),
            make(
                nodes.break_down,
                {
                    "comparison": comparison,
                    "quality": "quality",
                    **of_models("scores", "night_scores"),
                },
                "breakdown",
            ),
            make(write_report, shown, "report", "figures"),
        ],
        tags="reporting",
    )


def create_sweep(experiment: Experiment, sweep: str) -> Pipeline:
    """The tables of a sweep and its page."""
    comparison = experiment.parameter("comparison")
    write_report = update_wrapper(
        partial(nodes.write_sweep_report, sweep=sweep), nodes.write_sweep_report
    )
    return Pipeline(
        [
            node(
                nodes.summarise_cells,
                [comparison, f"{sweep}.cell_scores", f"{sweep}.groups"],
                [f"{sweep}.summary", f"{sweep}.by_person", f"{sweep}.tables"],
                name="summarise_cells",
                namespace=sweep,
            ),
            node(
                write_report,
                [
                    comparison,
                    f"{sweep}.summary",
                    f"{sweep}.by_person",
                    experiment.shared("audit"),
                    "quality",
                    "made_from",
                    "run_record",
                ],
                [f"{sweep}.report", f"{sweep}.figures"],
                name="write_sweep_report",
                namespace=sweep,
            ),
        ],
        tags="reporting",
    )
