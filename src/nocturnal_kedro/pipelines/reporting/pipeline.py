"""Wiring of reporting: all models of an experiment into its tables and one page."""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.reporting import nodes


def create_pipeline(
    experiment: str, models: tuple[str, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """The tables of `nodes.TABLES` and `{experiment}.report` from what evaluation saved."""
    names = (*models, *baselines)

    def of_each(*kinds: str) -> list[str]:
        return [f"{experiment}.{model}.{kind}" for kind in kinds for model in names]

    def of_models(*kinds: str) -> dict[str, str]:
        return {name.removeprefix(f"{experiment}."): name for name in of_each(*kinds)}

    def make(function: Callable[..., Any], inputs: Any, *outputs: str) -> Node:
        made = [f"{experiment}.{output}" for output in outputs]
        return node(
            function,
            inputs,
            made if len(made) > 1 else made[0],
            name=function.__name__,
            namespace=experiment,
        )

    write_report = update_wrapper(
        partial(nodes.write_report, experiment=experiment, models=models, baselines=baselines),
        nodes.write_report,
    )
    shown = {
        "comparison": "params:comparison",
        "evaluation": "params:evaluation",
        "made_from": "made_from",
        "run_record": "run_record",
        **{name: f"{experiment}.{name}" for name in nodes.TABLES},
        **{name: name for name in nodes.OF_DATA},
        **of_models(*nodes.OF_MODELS),
    }
    return Pipeline(
        [
            make(
                nodes.rank_models,
                ["params:comparison", "params:evaluation", "origins", *of_each("scores")],
                "leaderboard",
            ),
            make(
                nodes.compare_pairs,
                ["params:comparison", *of_each("night_scores")],
                "pairs",
            ),
            make(
                nodes.judge_alarms,
                ["params:comparison", "outcomes", *of_each("lows")],
                "alarms",
                "trade_off",
                "reliability",
            ),
            make(
                nodes.judge_readings,
                ["params:comparison", *of_each("low_readings")],
                "readings",
            ),
            make(
                nodes.check_levels,
                ["params:comparison", *of_each("level_scores")],
                "calibration",
                "bands",
            ),
            make(
                nodes.break_down,
                {
                    "comparison": "params:comparison",
                    "quality": "quality",
                    **of_models("scores", "night_scores"),
                },
                "breakdown",
            ),
            make(write_report, shown, "report"),
        ],
        tags="reporting",
    )
