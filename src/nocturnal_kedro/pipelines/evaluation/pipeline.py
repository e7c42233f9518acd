"""Wiring of evaluation: one template, a namespace per experiment and model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline, node

from nocturnal_kedro.pipelines.evaluation import nodes
from nocturnal_kedro.pipelines.experiments import Experiment, Lane, Sweep
from nocturnal_kedro.pipelines.training.pipeline import grounds_of

SCORED = ("scores", "night_scores", "level_scores", "low_readings", "translated")


def create_pipeline(
    experiment: Experiment, lanes: tuple[Lane, ...], baselines: tuple[str, ...]
) -> Pipeline:
    """Of every lane and baseline its forecasts, lows and cost, and all scores of them."""
    every = (*lanes, *map(Lane, baselines))
    made = [part for lane in every for part in _one_lane(experiment, lane)]
    if "cards" in experiment.adds:
        made += [_draw_cards(experiment, lane) for lane in lanes if lane.first]
    return Pipeline(made, tags="evaluation")


def create_sweep(experiment: Experiment, sweep: Sweep) -> Pipeline:
    """Scores by night of every cell of the sweep, and which nights are told apart."""
    score = node(
        update_wrapper(partial(nodes.score_cells, sweep=sweep), nodes.score_cells),
        {
            **grounds_of(experiment, sweep),
            "trained": "trained",
            "forecasted": f"{sweep.name}.forecasted",
            "cells": f"{sweep.name}.cells",
        },
        [f"{sweep.name}.cell_scores", f"{sweep.name}.groups"],
        name="score_cells",
        namespace=sweep.name,
    )
    return Pipeline([score], tags="evaluation")


def _one_lane(experiment: Experiment, lane: Lane) -> list[Node]:
    namespace, origins = f"{experiment.name}.{lane.name}", experiment.shared("origins")
    outcomes = experiment.shared("outcomes")
    score = partial(nodes.score, experiment=experiment.name, model=lane.model, seed=lane.seed)
    made = [
        node(
            nodes.forecast_nights,
            [f"{namespace}.model", "corpus", "splits", origins, "params:hardware", "answers"],
            [f"{namespace}.forecasts", f"{namespace}.cost"],
            name="forecast",
            namespace=namespace,
        ),
        node(
            nodes.foresee,
            [f"{namespace}.model", f"{namespace}.forecasts", origins, f"{namespace}.cost"],
            f"{namespace}.lows",
            name="foresee",
            namespace=namespace,
        ),
        node(
            update_wrapper(score, nodes.score),
            [f"{namespace}.forecasts", origins, f"{namespace}.cost", "params:evaluation"],
            [f"{namespace}.{kind}" for kind in SCORED],
            name="score",
            namespace=namespace,
        ),
    ]
    if "meals" in experiment.adds:
        after_meals = partial(nodes.after_meals, model=lane.model, seed=lane.seed)
        made.append(
            node(
                update_wrapper(after_meals, nodes.after_meals),
                [f"{namespace}.forecasts", origins, outcomes, f"{namespace}.cost"],
                [f"{namespace}.peaks", f"{namespace}.courses"],
                name="after_meals",
                namespace=namespace,
            )
        )
    return made


def _draw_cards(experiment: Experiment, lane: Lane) -> Node:
    namespace = f"{experiment.name}.{lane.name}"
    draw = partial(nodes.draw_cards, experiment=experiment.name, model=lane.model)
    return node(
        update_wrapper(draw, nodes.draw_cards),
        [
            f"{namespace}.model",
            f"{namespace}.forecasts",
            experiment.shared("origins"),
            f"{namespace}.lows",
            experiment.shared("outcomes"),
        ],
        f"{namespace}.cards",
        name="draw_cards",
        namespace=namespace,
    )
