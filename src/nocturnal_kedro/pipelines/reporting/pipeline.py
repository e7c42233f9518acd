"""Wiring of reporting: all models of an experiment into one table and one page."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.reporting import nodes


def create_pipeline(
    experiment: str, models: tuple[str, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """`{experiment}.leaderboard` and `{experiment}.report` from what evaluation saved."""

    def of_each(kind: str) -> list[str]:
        return [f"{experiment}.{model}.{kind}" for model in (*models, *baselines)]

    write_report = partial(
        nodes.write_report, experiment=experiment, models=models, baselines=baselines
    )
    kinds = ("model", "forecasts", "cost", "scores")
    return Pipeline(
        [
            node(
                nodes.rank_models,
                ["params:comparison", "origins", *of_each("scores")],
                f"{experiment}.leaderboard",
                name="rank_models",
                namespace=experiment,
            ),
            node(
                update_wrapper(write_report, nodes.write_report),
                [
                    f"{experiment}.leaderboard",
                    "origins",
                    "tally",
                    "quality",
                    "audit",
                    "made_from",
                    "params:comparison",
                    "run_record",
                    *(name for kind in kinds for name in of_each(kind)),
                ],
                f"{experiment}.report",
                name="write_report",
                namespace=experiment,
            ),
        ],
        tags="reporting",
    )
