"""Forecast origins: who is asked to be forecast from when, frozen once for every model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from nocturnal_kedro.errors import InputError, NoOriginsError, require_known
from nocturnal_kedro.series.corpus import CHANNELS, Corpus
from nocturnal_kedro.series.schema import (
    SLOT,
    SPLITS,
    STEP_MINUTES,
    STEPS_PER_DAY,
    STEPS_PER_HOUR,
    TEST_SPLITS,
    make_tally,
)

# Whoever has no bedtime in the options goes to bed after the last that was logged in these hours.
EVENING_BEGINS, EVENING_ENDS = 20, 2
BOLUS_U = 1.0  # of a slot at least; less may be basal, which is in the same amount


def _on_the_clock(given: object) -> object:
    """Unquoted, YAML reads 22:30 as the number 1350."""
    if not (isinstance(given, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5][05]", given)):
        raise ValueError("is not a clock time of the 5-minute grid in quotes, such as '22:30'")
    return given


def _known_anchor(given: str) -> str:
    return require_known("task.anchor", given, ANCHORS)


Clock = Annotated[str, BeforeValidator(_on_the_clock)]
Hour = Annotated[float, Field(ge=0, le=24)]


class Task(BaseModel, extra="forbid", frozen=True):
    """The question asked of every model: from when, how far back, how far ahead."""

    anchor: Annotated[str, AfterValidator(_known_anchor)] = "midnight"  # of ANCHORS
    context_steps: int = Field(default=512, ge=STEPS_PER_DAY)
    horizon_steps: int = Field(default=96, ge=1)
    coverage: float = Field(default=0.8, ge=0, le=1)  # of the last 24 h, and of the horizon
    # bedtime: of "source/subject", or of all of a source; others': see `anchor_rows`
    bedtimes: dict[str, Clock] = {}
    meal_g: float = Field(default=10.0, gt=0)  # meal: of a slot at least
    every_steps: int = Field(default=12, ge=1)  # sliding
    sliding_hours: tuple[Hour, Hour] | None = None  # of the clock: 21, 5 is from 21:00 until 05:00

    @model_validator(mode="after")
    def _of_its_anchor(self) -> Self:
        for anchor, known in ANCHORS.items():
            for name in known.options if anchor != self.anchor else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"'{name}' is of anchor {anchor}, and the anchor is {self.anchor}: leave "
                        f"it out, or choose anchor {anchor}"
                    )
        if self.sliding_hours and self.sliding_hours[0] == self.sliding_hours[1]:
            raise ValueError(
                "'sliding_hours' begin when they end: for the whole day leave them out"
            )
        return self

    @property
    def unit(self) -> str:
        """What one origin is of: a night, a meal, or no more than an origin."""
        return ANCHORS[self.anchor].unit

    @property
    def asked(self) -> str:
        """What origins are chosen among: midnights, bedtimes, meals, origins."""
        return ANCHORS[self.anchor].asked

    @property
    def when(self) -> str:
        """In words: from midnight, or every 60 minutes from 21:00 to 05:00."""
        if self.anchor == "meal":
            return f"from a meal with {self.meal_g:g} g of carbs or more"
        if self.anchor == "sliding":
            hours = self.sliding_hours or ()
            span = " to ".join(f"{int(hour):02d}:{round(60 * (hour % 1)):02d}" for hour in hours)
            return f"every {self.every_steps * STEP_MINUTES} minutes{span and f' from {span}'}"
        return f"from {self.anchor}"

    @property
    def usual_anchor_hours(self) -> float:
        """How near to the anchor training windows lie where `Training` does not say."""
        return 3.0 if self.unit == "night" else 0.5


def build_origins(
    corpus: Corpus, splits: pd.DataFrame, task: Task
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The eligible origins at the anchor, and a tally of those that are not.

    Returns a frame source, subject, origin, split and a tally in `schema.TALLY_COLUMNS` with the
    source. Raises `InputError` if no test split has an origin, or a bedtime is of nobody.
    """
    anchored = anchor_rows(corpus, task)
    rejected = reject_origins(corpus, splits, task)
    people = corpus.people.iloc[corpus.person_of(anchored)].reset_index(drop=True)
    steps = anchored - people["first"].to_numpy()
    nights = pd.DataFrame(
        {
            "source": people["source"],
            "subject": people["subject"],
            "origin": people["start"] + steps * SLOT,
            "split": rejected["split"].iloc[anchored].astype(object).to_numpy(),
            "reason": rejected["reason"].iloc[anchored].astype(str).to_numpy(),
        }
    )
    kept = nights[nights["reason"] == ""].drop(columns="reason").reset_index(drop=True)
    counts = nights.groupby(["source", "subject", "reason"]).size().reset_index(name="rows")
    counts["effect"] = np.where(counts["reason"] == "", "noted", "dropped")
    counts["reason"] = counts["reason"].replace("", f"{task.unit}s kept")
    tally = make_tally(
        "nights", counts[["subject", "effect", "reason", "rows"]].itertuples(index=False)
    )
    tally["source"] = counts["source"]
    if nights.empty:
        raise NoOriginsError(
            f"no {task.asked} are in the data: bedtimes and meals are found by the insulin and "
            f"carbs on record. Choose another task.anchor, or give clock times in task.bedtimes."
        )
    if not kept["split"].isin(TEST_SPLITS).any():
        reasons = nights["reason"].value_counts()
        raise NoOriginsError(
            f"no eligible {task.unit} to test on among {len(nights)} {task.asked}: "
            + "; ".join(
                f"{count} {reason or 'kept for training'}" for reason, count in reasons.items()
            )
            + ". Give more days of data, or lower task.coverage."
        )
    return kept, tally


def anchor_rows(corpus: Corpus, task: Task) -> np.ndarray:
    """Every row of the corpus at the anchor, eligible or not, in order (int64).

    midnight: 00:00. bedtime: the clock time of `task.bedtimes`, of the person or else of the
    source; of who is in neither the slot of the last meal or bolus logged from 20:00 to before
    02:00. meal: a slot with `task.meal_g` or more and no carbs in the 12 slots before. sliding:
    every `task.every_steps` slots, counted from a midnight that is the same for all.

    A slot holds the carbs and insulin of the five minutes up to its time, so that an origin is at
    most five minutes after what was eaten. Raises `InputError` where a bedtime is of nobody.
    """
    return ANCHORS[task.anchor].rows(corpus, task)


def _midnight_rows(corpus: Corpus, task: Task) -> np.ndarray:
    return np.flatnonzero(corpus.slot_of_day_T == 0)


def _bedtime_rows(corpus: Corpus, task: Task) -> np.ndarray:
    sources = corpus.people["source"]
    names = sources + "/" + corpus.people["subject"]
    for name in task.bedtimes:
        require_known("person or source in task.bedtimes", name, {*sources, *names})
    clocks = [
        task.bedtimes.get(name, task.bedtimes.get(source))
        for name, source in zip(names, sources, strict=True)
    ]
    slot_P = np.array([-1 if clock is None else _slot(clock) for clock in clocks], np.int16)
    slot_T = np.repeat(slot_P, corpus.people["last"] - corpus.people["first"])
    named = np.flatnonzero(corpus.slot_of_day_T == slot_T)

    begins, ends = EVENING_BEGINS * STEPS_PER_HOUR, EVENING_ENDS * STEPS_PER_HOUR
    evening_T = (corpus.slot_of_day_T >= begins) | (corpus.slot_of_day_T < ends)
    logged_T = (_amounts(corpus, "carbs_g") > 0) | (_amounts(corpus, "insulin_u") >= BOLUS_U)
    logged = np.flatnonzero((slot_T < 0) & evening_T & logged_T)
    # Days that begin with the evening: its two sides of midnight are one.
    day = (_slot_numbers(corpus, logged) - begins) // STEPS_PER_DAY
    person = corpus.person_of(logged)
    is_last = np.ones(len(logged), bool)
    is_last[:-1] = (person[1:] != person[:-1]) | (day[1:] != day[:-1])
    return np.sort(np.concatenate([named, logged[is_last]]))


def _meal_rows(corpus: Corpus, task: Task) -> np.ndarray:
    carbs_T = _amounts(corpus, "carbs_g")
    rows = np.flatnonzero(carbs_T >= task.meal_g)
    eaten_before_T = np.concatenate([[0], np.cumsum(carbs_T > 0)])
    first = corpus.people["first"].to_numpy()[corpus.person_of(rows)]
    hour_before = np.maximum(rows - STEPS_PER_HOUR, first)
    return rows[eaten_before_T[rows] == eaten_before_T[hour_before]]


def _sliding_rows(corpus: Corpus, task: Task) -> np.ndarray:
    rows = np.arange(len(corpus.slot_of_day_T))
    rows = rows[_slot_numbers(corpus, rows) % task.every_steps == 0]
    if task.sliding_hours is None:
        return rows
    begins, ends = task.sliding_hours
    hour = corpus.slot_of_day_T[rows] / STEPS_PER_HOUR
    if begins < ends:
        return rows[(hour >= begins) & (hour < ends)]
    return rows[(hour >= begins) | (hour < ends)]


class Anchor(NamedTuple):
    """Where origins of a name lie, and how tallies and the report call them."""

    rows: Callable[[Corpus, Task], np.ndarray]  # of the corpus, in order
    unit: str  # what one origin is of
    asked: str  # what origins are chosen among
    options: tuple[str, ...] = ()  # of the task, of this anchor alone


ANCHORS = {
    "midnight": Anchor(_midnight_rows, "night", "midnights"),
    "bedtime": Anchor(_bedtime_rows, "night", "bedtimes", ("bedtimes",)),
    "meal": Anchor(_meal_rows, "meal", "meals", ("meal_g",)),
    "sliding": Anchor(_sliding_rows, "origin", "origins", ("every_steps", "sliding_hours")),
}
KEPT = tuple(dict.fromkeys(f"{anchor.unit}s kept" for anchor in ANCHORS.values()))  # in tallies


def _amounts(corpus: Corpus, channel: str) -> np.ndarray:
    """What was logged of a channel; 0 where nothing is on record."""
    at = CHANNELS.index(channel)
    return np.where(corpus.observed_TC[:, at], corpus.values_TC[:, at], np.float32(0))


def _slot(clock: str) -> int:
    hour, minute = clock.split(":")
    return (int(hour) * 60 + int(minute)) // STEP_MINUTES


def _slot_numbers(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Slots from 1970 to each row: a time as a number, and a midnight where it is a whole day."""
    people = corpus.people
    begun_P = people["start"].to_numpy().astype("datetime64[ns]").astype(np.int64) // SLOT.value
    return rows + (begun_P - people["first"].to_numpy())[corpus.person_of(rows)]


def require_frozen(corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, task: Task) -> None:
    """Raise `InputError` unless the table of origins is the one of this corpus, splits and task.

    Tables of different runs, or a file cut short, would put trained people among those tested.
    """
    expected = build_origins(corpus, splits, task)[0]
    if not origins.reset_index(drop=True).equals(expected):
        raise InputError(
            f"the frozen table holds {len(origins)} origins, and this corpus, splits and task give "
            f"{len(expected)}, or others: they are of different runs. Run data_processing again, "
            f"whole, with the same --params."
        )


def data_fingerprint(corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame) -> str:
    """SHA-256 of what every model of a comparison must share: readings, splits and origins."""
    tables = (table.to_csv(index=False).encode() for table in (splits, origins))
    return hashlib.sha256(b"\n".join([corpus.fingerprint.encode(), *tables])).hexdigest()


def eligible_rows(corpus: Corpus, splits: pd.DataFrame, task: Task, split: str) -> np.ndarray:
    """Every row of the corpus from which a window of `split` may be forecast (int64)."""
    rejected = reject_origins(corpus, splits, task)
    fits = (rejected["reason"] == "") & (rejected["split"] == split)
    return np.flatnonzero(fits.to_numpy())


def reject_origins(corpus: Corpus, splits: pd.DataFrame, task: Task) -> pd.DataFrame:
    """For every row as an origin: its split and why it is not eligible ("" where it is).

    Eligible: the 24 h up to the origin and the whole horizon lie in one split, and of both at
    least `coverage` is covered by readings (`corpus.coverage`). A context longer than 24 h is cut
    at the start of the split when the window is gathered, so that no window straddles a boundary.
    """
    rows = np.arange(len(corpus.values_TC))
    first, last, split = _segment_of_rows(corpus, splits)

    glucose = corpus.observed_TC[:, 0]
    total = np.concatenate([[0], np.cumsum(corpus.covered_T)])
    before = np.maximum(rows + 1 - STEPS_PER_DAY, 0)
    after = np.minimum(rows + 1 + task.horizon_steps, len(rows))
    # A late reading of the origin's own slot was taken after the origin: not in the context.
    in_context = total[rows + 1] - total[before] - (glucose & corpus.late_T)
    in_horizon = total[after] - total[np.minimum(rows + 1, len(rows))]

    percent = f"{100 * task.coverage:g} %"
    reasons = {
        "day left out by splits.most_train_days or splits.source_shares": split == "unused",
        "window crosses the start, the end or a split boundary": (
            (rows + 1 - STEPS_PER_DAY < first) | (rows + 1 + task.horizon_steps > last)
        ),
        f"under {percent} of the 24 h before observed": (
            in_context < task.coverage * STEPS_PER_DAY
        ),
        f"under {percent} of the horizon observed": (
            in_horizon < task.coverage * task.horizon_steps
        ),
    }
    code = np.select(list(reasons.values()), np.arange(1, 1 + len(reasons), dtype=np.int8), 0)
    return pd.DataFrame(
        {
            "split": split,
            "reason": pd.Categorical.from_codes(code, ["", *reasons]),
            "first": first,
            "last": last,
        }
    )


def split_segments(
    corpus: Corpus, splits: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, last row (half open) and split of every segment, by their first rows."""
    segments = splits.merge(corpus.people, on=["source", "subject"], suffixes=("", "_person"))
    begin, end = (
        np.clip(
            segments["first"] + (segments[edge] - segments["start_person"]) // SLOT,
            segments["first"],
            segments["last"],
        ).to_numpy(np.int64)
        for edge in ("start", "end")
    )
    code = np.array([SPLITS.index(name) for name in segments["split"]], np.int8)
    # One without a row comes before that which has its first row.
    order = np.lexsort((end, begin))
    return begin[order], end[order], code[order]


def _segment_of_rows(
    corpus: Corpus, splits: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, pd.Categorical]:
    """First row, last row (half open) and name of the split that each row lies in."""
    length = len(corpus.values_TC)
    first, last = np.zeros(length, np.int64), np.zeros(length, np.int64)
    code = np.full(length, -1, np.int8)
    for begins, ends, name in zip(*split_segments(corpus, splits), strict=True):
        first[begins:ends], last[begins:ends], code[begins:ends] = begins, ends, name
    return first, last, pd.Categorical.from_codes(code, list(SPLITS))


def rows_of_split(corpus: Corpus, splits: pd.DataFrame, split: str) -> np.ndarray:
    """Every row of the corpus that lies in `split` (int64)."""
    return np.flatnonzero(_segment_of_rows(corpus, splits)[2] == split)


def origin_rows(corpus: Corpus, origins: pd.DataFrame) -> np.ndarray:
    """The corpus row of every origin, in the order of the table (int64)."""
    people = corpus.people[["source", "subject", "start", "first"]]
    joined = origins[["source", "subject", "origin"]].merge(
        people, on=["source", "subject"], how="left", validate="many_to_one"
    )
    if joined["first"].isna().any():
        lost = joined[joined["first"].isna()].iloc[0]
        raise InputError(
            f"origin of subject '{lost['subject']}' (source '{lost['source']}') is not in the "
            f"corpus. Corpus and origins come from different runs: run data_processing again."
        )
    return (joined["first"] + (joined["origin"] - joined["start"]) // SLOT).to_numpy(np.int64)
