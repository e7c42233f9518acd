"""The report: one self-contained HTML file made of frames, figures and the record of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import SPLIT_TITLES, Section, line_styles
from nocturnal_kedro.figures.alarms import (
    decision_curve,
    event_reliability,
    sensitivity_by_false_alarms,
)
from nocturnal_kedro.figures.calibration import quantile_reliability
from nocturnal_kedro.figures.cards import night_card
from nocturnal_kedro.figures.grids import error_grid
from nocturnal_kedro.figures.horizon import bias_by_horizon, error_by_horizon
from nocturnal_kedro.figures.learning import learning_curves
from nocturnal_kedro.figures.meals import courses_after_meals, error_by_meal_size
from nocturnal_kedro.figures.nights import BANDS, choose_nights, sample_nights
from nocturnal_kedro.figures.quality import nights_by_person
from nocturnal_kedro.figures.ranking import rmse_intervals
from nocturnal_kedro.metrics.cards import NightCard
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.point import outside_range
from nocturnal_kedro.metrics.probabilistic import interval_covers
from nocturnal_kedro.metrics.scores import Evaluation
from nocturnal_kedro.report.page import Page, render, stages_of
from nocturnal_kedro.series.origins import KEPT, Task
from nocturnal_kedro.series.schema import STEPS_PER_HOUR
from nocturnal_kedro.series.splits import SplitOptions


@dataclass(frozen=True)
class Content:
    """Everything that the report shows; frames as in docs/datasets.md."""

    experiment: str
    models: tuple[str, ...]  # trained, in the order of the colours
    baselines: tuple[str, ...]
    # leaderboard, pairs, alarms, trade_off, reliability, readings, calibration, bands, breakdown,
    # translated, costs; of meal origins also meals and courses; origins, tally (what became of
    # every row and night), quality (of each person's record) and audit (the leak checks)
    tables: dict[str, pd.DataFrame]
    scores: pd.DataFrame
    forecasts: dict[str, pd.DataFrame]
    made_from: dict[str, Any]  # raw files of each prepared part; see sources.Part
    records: dict[str, dict[str, Any]]  # of the artifacts: data, task, training, seconds
    logs: dict[str, pd.DataFrame]
    sources: dict[str, str]  # name -> citation
    comparison: Comparison
    evaluation: Evaluation
    run_record: dict[str, Any]  # see hooks.record
    cards: list[dict[str, Any]] | None = None  # night cards of the first model

    @property
    def task(self) -> Task:
        """What was asked; every model of a comparison has the same horizon."""
        return Task.model_validate(next(iter(self.records.values()))["task"])

    @property
    def splits(self) -> SplitOptions | None:
        """How the splits were cut, as the run that cut them recorded it; None if that is lost."""
        stage = self.run_record["stages"].get("data_processing")
        return stage and SplitOptions.model_validate(stage["parameters"]["splits"])


def render_report(content: Content) -> Page:
    """The whole page, and its figures. Raises `InputError` when there is no forecast to show."""
    for model, frame in content.forecasts.items():
        if frame["target_mg_dl"].notna().sum() == 0:
            raise InputError(f"report: the forecasts of '{model}' hold no observed target.")
    return render(
        "experiment.html.j2",
        _sections(content),
        content=content,
        task=content.task,
        tables=_tables(content),
        seeds=int(content.tables["leaderboard"].get("seeds", pd.Series([1])).max()),
        pairs=content.tables["pairs"].to_dict("records"),
        alarms=_alarms(content),
        readings=content.tables["readings"].to_dict("records"),
        meals=content.tables["meals"].to_dict("records") if "meals" in content.tables else [],
        bands=content.tables["bands"].to_dict("records"),
        breakdown=_breakdown(content),
        translated=_translated(content.tables["translated"]),
        hours=list(_horizons(content)),
        tally=_tally(content.tables["tally"]),
        quality=content.tables["quality"].to_dict("records"),
        audit=content.tables["audit"].to_dict("records"),
        fingerprint=content.records[content.baselines[0]]["data"],
        made_from=content.made_from,
        stages=stages_of(content.run_record),
    )


def _sections(content: Content) -> list[Section]:
    styles = line_styles(content.models, content.baselines)
    shown = content.models or content.baselines[:1]
    tables, task = content.tables, content.task
    through = "through the night" if task.unit == "night" else "by hours ahead"
    axis = "clock time" if task.anchor == "midnight" else "hours after the origin"
    chosen = choose_nights(content.forecasts[shown[0]], tables["origins"], task.unit)
    test_scores = content.scores[content.scores["split"].isin(SPLIT_TITLES)]
    in_test = tables["origins"][tables["origins"]["split"].isin(SPLIT_TITLES)]
    tested = {
        name: frame.merge(in_test, on=["source", "subject", "origin"])
        for name, frame in content.forecasts.items()
    }
    nights_of = {name: tested[name] for name in (*shown, "last_value")}
    sections = [
        Section(
            "Error with its uncertainty",
            "Subject-macro RMSE to the end of the horizon; bars are 95 % intervals over people. "
            "Overlapping bars alone do not make a tie: models are compared on the same people.",
            rmse_intervals(tables["leaderboard"].query("source == 'all'"), styles),
        ),
        Section(
            f"Error {through}",
            f"RMSE by {axis}, forecast {task.when}; each person counts once.",
            error_by_horizon(test_scores, styles),
        ),
        Section(
            f"Bias {through}",
            f"Mean of forecast minus truth by {axis}; above zero is too high.",
            bias_by_horizon(test_scores, styles),
        ),
        Section(
            f"Sample {task.unit}s",
            f"Chosen by rule: the {task.unit}s at the 10th, 50th and 90th percentile of the error "
            f"of {shown[0]}, and the one with the lowest reading, of each split, by {axis}. Dots "
            f"are what happened, bands the central 50 % and 90 % where a model gives quantiles; 70 "
            f"to 180 mg/dL is shaded, 54 mg/dL dotted.{_coverage(nights_of)}",
            sample_nights(nights_of, chosen, styles),
        ),
        Section(
            "Calibration",
            "How much more, or less, often than its level readings lie under a quantile. Dotted "
            "are the quantiles as the model gave them, solid after they were set right on the "
            "validation nights; bands are 95 % intervals over people.",
            quantile_reliability(tables["calibration"], shown, styles),
        ),
        *_meal_sections(content, styles),
        *_clinical_sections(content, styles, nights_of),
        *_cards(content),
        Section(
            f"Which {task.unit}s count",
            f"Per person: {task.asked} that became forecast origins, and why the others did not.",
            nights_by_person(tables["tally"]),
        ),
    ]
    if content.logs:
        sections.append(
            Section(
                "Training",
                "Validation RMSE after each epoch; the ring marks the epoch that was kept.",
                learning_curves(content.logs, styles),
            )
        )
    return sections


def _meal_sections(content: Content, styles: dict[str, dict[str, object]]) -> list[Section]:
    """Peaks and courses, where origins are meals."""
    if "meals" not in content.tables:
        return []
    shown = (*(content.models or content.baselines[:1]), "last_value")
    own = {name: styles[name] for name in shown}
    judged = content.tables["meals"]
    by_size = "by the carbs that were logged; each person counts once, bars are 95 % intervals"
    return [
        Section(
            "After a meal",
            "Mean change of glucose since the meal: what came as dots, forecasts as lines. Each "
            "person counts once; steps of fewer than three people are left out.",
            courses_after_meals(content.tables["courses"], own),
        ),
        Section(
            "Error by size of the meal",
            f"RMSE over the whole horizon {by_size} over people.",
            error_by_meal_size(judged, own),
        ),
        Section(
            "How high is the peak?",
            f"Mean absolute error of the highest glucose {by_size} over people.",
            error_by_meal_size(judged, own, "peak_mae"),
        ),
        Section(
            "When is the peak?",
            f"Mean absolute error of the time of the peak, of meals after which glucose rose, "
            f"{by_size} over people.",
            error_by_meal_size(judged, own, "peak_time_mae"),
        ),
    ]


def _cards(content: Content) -> list[Section]:
    """Night cards of the first model; `{model}_night_cards.json` has those of each."""
    cards = [NightCard.model_validate(card) for card in content.cards or ()]
    return [
        Section(
            f"Night card {number}: {card.chosen}",
            f"{content.models[0]}, {SPLIT_TITLES[card.split].lower()}. The note on reliability "
            f"rests on validation nights alone.",
            night_card(card),
        )
        for number, card in enumerate(cards, 1)
    ]


def _clinical_sections(
    content: Content, styles: dict[str, dict[str, object]], nights_of: dict[str, pd.DataFrame]
) -> list[Section]:
    """Error grids and alarms, where the evaluation is a clinical one."""
    if content.evaluation.kind != "clinical":
        return []
    tables, task = content.tables, content.task
    shown = content.models or content.baselines[:1]
    return [
        Section(
            "Clarke error grid",
            f"Every observed point of the test nights, pooled; A and B are clinically acceptable. "
            f"Forecasts are not clipped. Outside 0 to 600 mg/dL lie {_outside(nights_of)}.",
            error_grid(nights_of, "clarke"),
        ),
        Section(
            "Parkes error grid, type 1",
            "The same points in the consensus grid: Parkes et al. 2000, Pfützner et al. 2013.",
            error_grid(nights_of, "parkes"),
        ),
        Section(
            "DTS error grid",
            "The same points in the grid of the Diabetes Technology Society: Klonoff et al. 2024.",
            error_grid(nights_of, "dts"),
        ),
        Section(
            f"Alarms at {'midnight' if task.anchor == 'midnight' else task.asked}",
            "Share of the nights with 15 minutes below 70 mg/dL that an alarm finds, by the false "
            "alarms that it costs, at every threshold of P(low tonight). Dotted: one a week.",
            sensitivity_by_false_alarms(tables["trade_off"], styles),
        ),
        Section(
            "Is the probability true?",
            "Nights told alike, and how many of them went below 70 mg/dL for 15 minutes; a larger "
            "point is more nights. Bars are 95 % intervals over people, where there are six. "
            "On the line it is.",
            event_reliability(tables["reliability"], shown, styles),
        ),
        Section(
            "Decision curve",
            "Net benefit of an alarm from each probability on: nights rightly alarmed, less those "
            "alarmed for nothing at the odds of the threshold (Vickers & Elkin 2006).",
            decision_curve(tables["trade_off"], styles),
        ),
    ]


def _coverage(forecasts: dict[str, pd.DataFrame]) -> str:
    """How much of what happened lay in the bands, of every model that has them."""
    told = []
    for name, frame in forecasts.items():
        observed = frame.dropna(subset="target_mg_dl")
        for lower, upper, _ in BANDS:
            if lower in frame:
                nominal = 100 * (float(upper[1:]) - float(lower[1:]))
                held = interval_covers(
                    observed["target_mg_dl"], observed[lower], observed[upper]
                ).mean()
                told.append(f"the {nominal:.0f} % band of {name} held {held:.0f} %")
    return f" Of all test readings, {', '.join(told)}." if told else ""


def _outside(forecasts: dict[str, pd.DataFrame]) -> str:
    """The share of forecasts that no sensor could read, of each model."""
    shares = {
        name: outside_range(frame["target_mg_dl"], frame["forecast_mg_dl"]).mean()
        for name, frame in forecasts.items()
    }
    return ", ".join(f"{share:.2f} % of {name}" for name, share in shares.items())


def _tables(content: Content) -> list[dict[str, Any]]:
    """Leaderboard rows ready to show, per split and horizon."""
    by = content.tables["leaderboard"].groupby(["source", "split"], sort=True)
    return [
        {
            "source": source,
            "split": split,
            "hours": hours,
            "rows": _up_to(rows, suffix, content.comparison.rank_by).to_dict("records"),
        }
        for (source, split), rows in sorted(by, key=lambda group: group[0][0] != "all")
        for hours, suffix in _horizons(content).items()
    ]


def _up_to(rows: pd.DataFrame, suffix: str, rank_by: str) -> pd.DataFrame:
    """The columns of one horizon under their plain names, best model first."""
    if suffix:
        measured = rows[[name for name in rows if name.endswith(suffix)]]
        measured.columns = measured.columns.str.removesuffix(suffix)
        rows = rows[["model", "nights", "subjects"]].join(measured)
    return rows.sort_values(rank_by)


def _alarms(content: Content) -> list[dict[str, Any]]:
    """A table for each split, kind of low and choice of nights, as they stand in the frame."""
    by = ["split", "low", "nights_chosen"]
    if content.evaluation.kind != "clinical":
        return []
    return [
        dict(zip(by, key, strict=True)) | {"rows": rows.to_dict("records")}
        for key, rows in content.tables["alarms"].groupby(by, sort=False)
    ]


def _breakdown(content: Content) -> dict[str, list[dict[str, Any]]]:
    """The rows of each dimension that tells more than one value, of the models shown."""
    shown = (*content.models, "last_value")
    table = content.tables["breakdown"]
    told = table[table["model"].isin(shown)]
    return {
        str(by): rows.sort_values(["split", "value", "model"]).to_dict("records")
        for by, rows in told.groupby("by", sort=False)
        if rows["value"].nunique() > 1
    }


def _translated(translated: pd.DataFrame) -> list[dict[str, Any]]:
    return translated[translated["split"].isin(SPLIT_TITLES)].to_dict("records")


def _horizons(content: Content) -> dict[str, str]:
    """Hours from the origin, longest first, and the suffix of their columns."""
    whole = content.task.horizon_steps / STEPS_PER_HOUR
    shorter = (hours for hours in content.comparison.also_hours if hours < whole)
    return {f"{whole:g}": ""} | {f"{hours:g}": f"_{hours:g}h" for hours in shorter}


def _tally(tally: pd.DataFrame) -> dict[str, Any]:
    """The tally of rows by source and by person, and of nights by person."""
    rows = tally[tally["stage"] != "nights"]
    by = ["source", "stage", "effect", "reason"]
    by_source = rows.groupby(by, sort=False)["rows"].sum().reset_index()
    nights = tally[tally["stage"] == "nights"].assign(
        kept=lambda frame: frame["rows"].where(frame["reason"].isin(KEPT), 0)
    )
    people = nights.groupby(["source", "subject"])[["rows", "kept"]].sum().reset_index()
    return {
        "by_source": by_source.to_dict("records"),
        "by_person": rows.to_dict("records"),
        "people": people.to_dict("records"),
        "kept": int(people["kept"].sum()),
        "asked": int(people["rows"].sum()),
    }
