"""From one person's recent readings to the night ahead: the code that forecasts and scores use.

Readings are gridded, laid out and gathered as those of a cohort are, so that a night that was
forecast in an evaluation is forecast the same here. To a served model everybody is new: nobody's
name is asked for, and a baseline that knows its people by name says what it says of strangers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import calibrate
from nocturnal_kedro.metrics.cards import DISCLAIMER, NightCard, make_cards
from nocturnal_kedro.metrics.events import LOWS, foresee_lows
from nocturnal_kedro.metrics.forecasts import NIGHT, Forecasts
from nocturnal_kedro.series.corpus import CHANNELS, build_corpus
from nocturnal_kedro.series.covariates import CLOCK
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.origins import Task, anchor_rows, origin_rows, reject_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import (
    QUANTILE_LEVELS,
    SLOT,
    STEP_MINUTES,
    STEPS_PER_DAY,
    Readings,
    make_tally,
)
from nocturnal_kedro.serving.readings import SUBJECT, Recent, to_readings

if TYPE_CHECKING:  # torch costs seconds
    from collections.abc import Callable

    from nocturnal_kedro.models import Answer
    from nocturnal_kedro.training.artifact import Artifact
    from nocturnal_kedro.training.data import Data

SOURCE = "served"
# An evaluation asks of a whole day that it be covered; who asks tonight can wait for a reading.
OLDEST_READING_MINUTES = 60
CONSIDERED = ("dropped", "changed")  # of the account of rows, what the asker should know


@dataclass(frozen=True)
class About:
    """Which model is served, and what validation has shown of it; frames as the evaluation's.

    `lows` are of `events.foresee_lows` with model and data before them, `outcomes` of
    `outcomes.describe_nights`; without them a card says that nothing shows how true it is.
    """

    model_id: str
    experiment: str
    fingerprint: str  # SHA-256 of the artifact's SHA256SUMS
    trained: str | None = None  # when, where that is known
    lows: pd.DataFrame = field(default_factory=pd.DataFrame)
    outcomes: pd.DataFrame = field(default_factory=pd.DataFrame)


class Account(BaseModel, extra="forbid", frozen=True):
    """Rows of which something became on the way to the 5-minute grid."""

    effect: str  # dropped or changed
    reason: str
    rows: int


class Tonight(BaseModel):
    """What a model says of one night."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    disclaimer: str = DISCLAIMER
    model_id: str
    origin: str  # local time, ISO 8601
    minutes: tuple[int, ...]  # after the origin, of the H steps
    forecast_mg_dl: tuple[float, ...]  # the model's own point
    levels: tuple[float, ...]
    quantiles_mg_dl: tuple[tuple[float, ...], ...]  # calibrated: of each step, by level
    low_probability: float  # of 15 minutes below 70 mg/dL tonight
    very_low_probability: float  # of 15 minutes below 54 mg/dL
    not_on_record: tuple[str, ...]  # what the model can use and was not told at the origin
    warnings: tuple[str, ...]
    account: tuple[Account, ...]
    card: NightCard


@dataclass(frozen=True)
class Served:
    """A model that is ready to answer: its weights are in place."""

    artifact: Artifact
    about: About
    task: Task
    grid: GridOptions
    physiology: Physiology
    answer: Callable[[Person], Answer]


class Person(NamedTuple):
    """A cohort of one, laid out."""

    data: Data
    row: int  # of the corpus: the origin's
    account: tuple[Account, ...]  # what became of rows


def make_ready(artifact: Artifact, about: About) -> Served:
    """Restore the model once. Raises `InputError` on one that cannot be served."""
    from nocturnal_kedro.training.loop import ONE_AT_A_TIME
    from nocturnal_kedro.training.start import restore_model

    task = Task.model_validate(artifact.record["task"])
    grid, physiology = _made_ready_by(artifact)
    _require_spread(artifact)
    _require_same_data(artifact, about)
    if artifact.kind == "baseline":
        answer: Callable[[Person], Answer] = partial(_answer_of_baseline, artifact)
    elif plugins.is_service(artifact.name):
        raise InputError(
            f"'{artifact.name}' is asked of a service elsewhere, which is paid for and would get "
            f"the readings. Serve a model whose weights are here."
        )
    else:
        with ONE_AT_A_TIME:
            module = restore_model(artifact, task).eval()
        answer = partial(_answer_of_module, artifact, module)
    return Served(artifact, about, task, grid, physiology, answer)


def forecast_tonight(served: Served, recent: Recent) -> Tonight:
    """The night from `recent.origin` on. Raises `InputError` on readings that do not suffice."""
    person = lay_out_person(served, recent)
    nights = person.data.origins
    answer = served.answer(person)
    quantiles_NHQ = calibrate(answer.point_NH, answer.quantiles_NHQ, served.artifact.spread)
    quantiles_NHQ = quantiles_NHQ.astype(np.float32)  # as forecasts are saved
    if not (np.isfinite(answer.point_NH).all() and np.isfinite(quantiles_NHQ).all()):
        raise InputError(
            "the forecast is not finite: the readings are far from any that the model has seen. "
            "Look at their doses and times."
        )
    target_NH = np.full(answer.point_NH.shape, np.nan)
    forecasts = Forecasts(nights, target_NH, answer.point_NH, quantiles_NHQ, None)
    lows = foresee_lows(forecasts, served.artifact.spread)
    said = lows.iloc[0]
    return Tonight(
        model_id=served.about.model_id,
        origin=nights["origin"].iloc[0].isoformat(),
        minutes=tuple(STEP_MINUTES * (step + 1) for step in range(served.task.horizon_steps)),
        forecast_mg_dl=answer.point_NH[0].tolist(),
        levels=QUANTILE_LEVELS,
        quantiles_mg_dl=quantiles_NHQ[0].tolist(),
        low_probability=float(said["low_probability"]),
        very_low_probability=float(said["very_low_probability"]),
        not_on_record=_not_on_record(served.artifact, person),
        warnings=() if _at_anchor(person) else (_off_anchor(served.task),),
        account=person.account,
        card=_card(served, forecasts, lows, _last_reading(person)),
    )


def lay_out_person(served: Served, recent: Recent) -> Person:
    """The person as a cohort of one. Raises `InputError` on readings that do not suffice.

    A grid ends with its last reading, so one stands after the origin, in place of the next to
    come: the origin has its slot, and what was given up to it is counted. No window sees it.
    """
    from nocturnal_kedro.training.data import Data

    frame, origin, counted = to_readings(recent)
    _require_real(frame, served.grid)
    read = frame.loc[frame["glucose_mg_dl"].notna(), ["time", "glucose_mg_dl"]]
    if read.empty:  # all of it in an hour that a clock change repeats
        raise InputError("readings: no glucose is left in local time. Give more of the record.")
    newest = read.iloc[-1]
    minutes = (origin - newest["time"]) / pd.Timedelta(minutes=1)
    if minutes > OLDEST_READING_MINUTES:
        raise InputError(
            f"origin: the newest glucose, of {newest['time'].isoformat()}, is {minutes:.0f} "
            f"minutes older than the origin; {OLDEST_READING_MINUTES} are allowed. Give newer "
            f"readings, or the origin {newest['time'].ceil(SLOT).isoformat()}."
        )
    to_come = frame.iloc[:1].assign(**dict.fromkeys(frame.columns[2:], np.nan))
    to_come = to_come.assign(time=origin + SLOT, glucose_mg_dl=newest["glucose_mg_dl"])
    readings = Readings(pd.concat([frame, to_come], ignore_index=True), make_tally("read", []))
    series, tally = grid_people(order_readings(SOURCE, readings), served.grid)
    corpus = build_corpus(series, served.physiology)
    key = {"source": [SOURCE], "subject": [SUBJECT]}
    first, last = series["time"].iloc[0].floor("D"), origin + pd.Timedelta(days=2)
    splits = pd.DataFrame(key | {"split": "patient", "start": [first], "end": [last]})
    origins = pd.DataFrame(key | {"origin": [origin], "split": "patient"})
    data = Data(corpus, splits, origins, served.task)
    [row] = origin_rows(corpus, origins)
    _require_covered(data, row)
    tallied = pd.concat([make_tally("read", counted), tally])
    told = tallied.loc[tallied["effect"].isin(CONSIDERED), ["effect", "reason", "rows"]]
    return Person(data, row, tuple(Account(**of) for of in told.to_dict("records")))


def _made_ready_by(artifact: Artifact) -> tuple[GridOptions, Physiology]:
    """The options that the readings it has learnt from were made ready by."""
    told = artifact.record.get("made_ready_by")
    if told is None:
        raise InputError(
            f"the artifact of '{artifact.name}' does not tell how insulin and carbs act in what "
            f"it has learnt from: it was written by another version. Run the training pipeline "
            f"again."
        )
    return GridOptions.model_validate(told["grid"]), Physiology.model_validate(told["physiology"])


def _require_spread(artifact: Artifact) -> None:
    """Raise `InputError` where nothing was learnt of how the model errs, as of a migrated one."""
    if not artifact.spread.log_offset_HQ.any():
        raise InputError(
            f"'{artifact.name}' was never set right on validation nights: nothing is known of how "
            f"far it errs, and its intervals would have no width. Run it on data of your own: "
            f"model_options.{artifact.name}.weights=FOLDER with strategy zero_shot or fine_tune."
        )


def _require_same_data(artifact: Artifact, about: About) -> None:
    """Raise `InputError` where validation nights were told by another model, or of other data."""
    told_by = set(about.lows["model"]) if len(about.lows) else {artifact.name}
    if told_by != {artifact.name}:
        raise InputError(
            f"the lows that cards of '{artifact.name}' would lean on were told by "
            f"{', '.join(map(repr, sorted(told_by)))}. Give those of its own run, "
            f"EXPERIMENT/{artifact.name}_lows.parquet."
        )
    if len(about.lows) and set(about.lows["data"]) != {artifact.record.get("data")}:
        raise InputError(
            f"the lows that cards of '{artifact.name}' would lean on were told by a model of other "
            f"data. Give those of its own run, EXPERIMENT/{artifact.name}_lows.parquet."
        )


def _require_real(frame: pd.DataFrame, grid: GridOptions) -> None:
    """Raise `InputError` on glucose that no sensor gives; the grid would leave it out."""
    glucose = frame["glucose_mg_dl"]
    odd = (glucose < grid.glucose_lowest_mg_dl) | (glucose > grid.glucose_highest_mg_dl)
    if odd.any():
        first = frame[odd].iloc[0]
        raise InputError(
            f"readings: {int(odd.sum())} glucose values are out of any sensor's range, "
            f"{grid.glucose_lowest_mg_dl:g} to {grid.glucose_highest_mg_dl:g} mg/dL, the first at "
            f"{first['time'].isoformat()}. Leave such rows' glucose out, or correct the unit."
        )


def _require_covered(data: Data, row: int) -> None:
    """Raise `InputError` where an evaluation would not take the night for lack of readings."""
    # Of the horizon one step alone is looked at: the rest has not come yet.
    asked = data.task.model_copy(update={"horizon_steps": 1})
    rejected = reject_origins(data.corpus, data.splits, asked)["reason"].iloc[row]
    if rejected == "":
        return
    covered = int(data.corpus.covered_T[max(row + 1 - STEPS_PER_DAY, 0) : row + 1].sum())
    share = 100 * covered / STEPS_PER_DAY
    raise InputError(
        f"readings: {share:.0f} % of the 24 hours before the origin have a glucose "
        f"reading, and {100 * data.task.coverage:g} % of them, and the first of these hours, are "
        f"needed. Give the readings of {data.task.context_steps * STEP_MINUTES / 60:.0f} hours and "
        f"more, or choose an origin with fewer gaps before it."
    )


def _at_anchor(person: Person) -> bool:
    """Whether origins that the model was set right on lie at such a time."""
    # Bedtimes of named people are nobody's here: as of others, it is what was logged last.
    task = person.data.task.model_copy(update={"bedtimes": {}})
    return person.row in anchor_rows(person.data.corpus, task)


def _off_anchor(task: Task) -> str:
    return (
        f"The model was trained and set right on forecasts {task.when}, which this origin is not: "
        f"how true its intervals and probabilities are was not looked at."
    )


def _answer_of_module(artifact: Artifact, module: Any, person: Person) -> Answer:
    from nocturnal_kedro.series.windows import Channels
    from nocturnal_kedro.training.forecast import answer_of_module

    channels = Channels(tuple(artifact.options["covariates"]))
    gatherer = person.data.gatherer(artifact.scaler, channels)
    return answer_of_module(module, person.data.corpus, gatherer, np.array([person.row]))[0]


def _answer_of_baseline(artifact: Artifact, person: Person) -> Answer:
    from nocturnal_kedro.training.forecast import answer_with

    return answer_with(artifact, person.data, np.array([person.row]))[0]


def _not_on_record(artifact: Artifact, person: Person) -> tuple[str, ...]:
    can_use = artifact.options.get("covariates") or ()
    known = person.data.corpus.observed_TC[person.row]
    return tuple(name for name in can_use if name != CLOCK and not known[CHANNELS.index(name)])


def _last_reading(person: Person) -> float:
    """The newest up to the origin, at most an hour old."""
    corpus = person.data.corpus
    [seen] = np.nonzero(corpus.observed_TC[: person.row + 1, 0])
    return float(corpus.values_TC[seen[-1], 0])


def _card(served: Served, forecasts: Forecasts, lows: pd.DataFrame, last_mg_dl: float) -> NightCard:
    """The card of the night, beside the validation nights that are known."""
    about = served.about
    tonight = forecasts.nights.assign(last_mg_dl=last_mg_dl)
    known = about.outcomes
    for low in LOWS:
        trained = known.loc[known["split"] == "train", f"{low}_happened"] if len(known) else []
        # Of somebody new the usual share is everybody's, as in `outcomes.describe_nights`.
        tonight[f"{low}_usual"] = float(np.mean(trained)) if len(trained) else np.nan
        tonight[f"{low}_happened"] = False  # unread: of a night to come a card says nothing
    chosen = tonight[NIGHT].assign(chosen="asked for")
    validation = about.lows[about.lows["split"] == "validation"] if len(about.lows) else None
    [card] = make_cards(
        forecasts,
        lows if validation is None else pd.concat([validation, lows], ignore_index=True),
        pd.concat([known, tonight], ignore_index=True) if len(known) else tonight,
        served.artifact.spread,
        chosen,
        experiment=about.experiment,
        model=served.artifact.name,
    )
    return card


def read_about(folder: Path, model_id: str, experiment: str, trained: str | None = None) -> About:
    """What the folder of an artifact tells of it, beside what it is called."""
    from nocturnal_kedro.training.artifact import SUMS, require_whole, sha256

    require_whole(folder)
    return About(model_id, experiment, sha256(folder / SUMS), trained)
