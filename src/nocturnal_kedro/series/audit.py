"""The leak audit: each way in which a test could have been seen, tried on the data at hand.

Most checks spoil something that must not matter (what lies after an origin, what lies outside
training) and look whether anything else moves. They use the code that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.origins import (
    Task,
    data_fingerprint,
    eligible_rows,
    origin_rows,
    rows_of_split,
)
from nocturnal_kedro.series.overlap import is_copy
from nocturnal_kedro.series.physiology import OF_CARBS, OF_INSULIN, Physiology, act
from nocturnal_kedro.series.schema import SLOT, STEPS_PER_DAY, Readings, make_tally

if TYPE_CHECKING:  # torch takes seconds to import, and the options are read at every command
    from nocturnal_kedro.series.scaler import Scaler
    from nocturnal_kedro.series.windows import Batch

ORIGINS_OF_A_PERSON = 2  # that are made again from what was recorded by then
AUDIT_COLUMNS = ("check", "passed", "examined", "found", "data")
_SPOILED = np.float32(987.0)


class AuditOptions(BaseModel, extra="forbid", frozen=True):
    """How much is looked at."""

    parts: int = Field(default=3, ge=0)  # of the sources, read again
    people: int = Field(default=2, ge=1)  # of each, made again

    origins: int = Field(default=256, ge=1)  # spoiled after, one person after the other
    train_windows: int = Field(default=256, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Audited:
    """What is audited, and how it was made; `raw` holds what the source gave of some people."""

    series: pd.DataFrame
    corpus: Corpus
    splits: pd.DataFrame
    origins: pd.DataFrame
    overlaps: pd.DataFrame
    raw: dict[tuple[str, str], pd.DataFrame]  # by source and subject
    task: Task
    physiology: Physiology
    grid: GridOptions


def audit_leaks(audited: Audited, options: AuditOptions) -> pd.DataFrame:
    """One row per check: check, passed, examined (how many), found ("" if passed), data.

    `data` is the fingerprint of what was audited. `require_passed` turns a failure into an error.
    """
    from nocturnal_kedro.series.scaler import fit_scaler

    corpus, splits, origins = audited.corpus, audited.splits, audited.origins
    draw = np.random.default_rng(options.seed)
    train_rows = eligible_rows(corpus, splits, audited.task, "train")
    data = _Data(
        **vars(audited),
        scaler=fit_scaler(corpus, splits),
        sample=origins.iloc[_choose(draw, len(origins), options.origins)],
        train_rows=train_rows[_choose(draw, len(train_rows), options.train_windows)],
    )
    checked = [(check, *look(data)) for check, look in CHECKS.items()]
    fingerprint = data_fingerprint(corpus, splits, origins)
    return pd.DataFrame(
        [(check, not found, examined, found, fingerprint) for check, examined, found in checked],
        columns=list(AUDIT_COLUMNS),
    )


def require_passed(audit: pd.DataFrame) -> None:
    """Raise `InputError` with every failed check and what it found."""
    failed = audit[~audit["passed"]]
    if len(failed):
        told = "; ".join(f"{row.check}: NO, {row.found}" for row in failed.itertuples())
        raise InputError(
            f"leak audit: {len(failed)} of {len(audit)} checks failed. {told}. Nothing may be "
            f"trained or scored on this data before that is mended."
        )


def require_audited(audit: pd.DataFrame, data: str) -> None:
    """Raise `InputError` unless `audit` is of this data, by its fingerprint."""
    if set(audit["data"]) != {data}:
        raise InputError(
            f"readings, splits and origins ({data[:12]}) are not those that passed the leak audit: "
            f"they are of different runs. Run data_processing again, whole, with the same "
            f"--params; what fails the audit is not trained on."
        )


@dataclass(frozen=True)
class _Data(Audited):
    """With the scaler, and the part that is looked at closely."""

    scaler: Scaler
    sample: pd.DataFrame  # of the origins
    train_rows: np.ndarray

    def gather(self, rows: np.ndarray, corpus: Corpus | None = None) -> Batch:
        """Windows as training and forecasting gather them; so few are not worth a layout."""
        import torch

        from nocturnal_kedro.series.windows import Channels, WindowGatherer

        gatherer = WindowGatherer(
            corpus or self.corpus,
            self.splits,
            self.scaler,
            self.task,
            Channels(COVARIATES),
            resident=False,
        )
        return gatherer.gather(torch.from_numpy(rows))


def _choose(draw: np.random.Generator, of: int, most: int) -> np.ndarray:
    return np.sort(draw.permutation(of)[:most])


def _disjoint(data: _Data) -> tuple[int, str]:
    splits = data.splits
    ordered = splits.sort_values(["source", "subject", "start"])
    same = ordered[["source", "subject"]].eq(ordered[["source", "subject"]].shift()).all(axis=1)
    overlap = ordered[same & (ordered["start"] < ordered["end"].shift())]
    people = splits.groupby(["source", "subject"])["split"].agg(set)
    seen = people[people.map(lambda names: "patient" in names and len(names) > 1)]
    found = [f"{r.source}/{r.subject} twice from {r.start:%Y-%m-%d}" for r in overlap.itertuples()]
    found += [f"{'/'.join(person)} in {', '.join(sorted(seen[person]))}" for person in seen.index]
    return len(splits), _told(found)


def _inside(data: _Data) -> tuple[int, str]:
    joined = data.origins.merge(data.splits, on=["source", "subject", "split"], how="left")
    first = joined["origin"] - (STEPS_PER_DAY - 1) * SLOT
    last = joined["origin"] + data.task.horizon_steps * SLOT
    joined["held"] = (first >= joined["start"]) & (last < joined["end"])
    held = joined.groupby(["source", "subject", "origin"])["held"].any()
    return len(held), _told([f"{s}/{p} {at:%Y-%m-%d %H:%M}" for s, p, at in held.index[~held]])


def _twice(data: _Data) -> tuple[int, str]:
    overlaps = data.overlaps
    pair = ["source", "subject", "other_source", "other_subject"]
    copies = overlaps[is_copy(overlaps)].drop_duplicates(pair)  # by the kind that finds more
    return len(data.corpus.people), _told(
        [
            f"{row.shared_pct:.1f} % of the readings of {row.source}/{row.subject} "
            + (
                "come again at another time"
                if row.kind == "repeat"
                else f"are those of {row.other_source}/{row.other_subject} too, "
                f"{row.other_shared_pct:.1f} % of its own"
            )
            + f", {row.start:%Y-%m-%d} to {row.end:%Y-%m-%d}: leave that person out by "
            f"cohort.exclude, or that part by the source's options or in the files"
            for row in copies.itertuples()
        ]
    )


def _targets(data: _Data) -> tuple[int, str]:
    rows = origin_rows(data.corpus, data.sample)
    batch = data.gather(rows)
    glucose = data.series["glucose_mg_dl"].to_numpy()
    at = rows[:, None] + np.arange(1, data.task.horizon_steps + 1)
    truth = glucose[at.clip(max=len(glucose) - 1)]
    observed = batch.target_observed_BH.numpy()
    given = data.scaler.to_mg_dl(batch.target_BH).numpy()
    wrong = (observed != ~np.isnan(truth)) | (observed & ~(np.abs(given - truth) < 0.01))
    return int(observed.sum()), _told(_names(data.sample, wrong.any(axis=1)))


def _doses(data: _Data) -> tuple[int, str]:
    """Recompute what is on board at an origin from what was recorded up to it."""
    corpus = data.corpus
    rows = origin_rows(corpus, data.sample)
    first = corpus.people["first"].to_numpy()
    begin = first[np.searchsorted(first, rows, side="right") - 1]
    wrong = np.zeros(len(rows), bool)
    for number, (start, row) in enumerate(zip(begin, rows, strict=True)):
        start = max(start, row + 1 - 2 * corpus.kernels_4K.shape[1])
        for actions, name in ((OF_INSULIN, "insulin_u"), (OF_CARBS, "carbs_g")):
            channel = CHANNELS.index(name)
            amounts = np.where(
                corpus.observed_TC[start : row + 1, channel],
                corpus.values_TC[start : row + 1, channel].astype(np.float64),
                np.nan,
            )
            kernels = corpus.kernels_4K[actions].astype(np.float64)
            expected = act(amounts, kernels, data.physiology.observed_share)[:, -1]
            columns = [1 + action for action in actions]
            given, known = corpus.values_TC[row, columns], corpus.observed_TC[row, columns]
            # It may count as unknown for more reasons; known it must be this.
            wrong[number] |= not np.allclose(given[known], expected[known], rtol=1e-4, atol=1e-4)
    return len(rows), _told(_names(data.sample, wrong))


def _invented(data: _Data) -> tuple[int, str]:
    """Slots that count as observed, of people whose readings are at hand."""
    found, examined = [], 0
    for (source, subject), frame in data.raw.items():
        own = data.series[
            (data.series["source"] == source) & (data.series["subject"] == subject)
        ].dropna(subset="glucose_mg_dl")
        read = frame.dropna(subset=["glucose_mg_dl", "time"])["time"]
        invented = own[~own["time"].isin((read + SLOT / 2).dt.floor(SLOT))]
        examined += len(own)
        found += [f"{source}/{subject} {at:%Y-%m-%d %H:%M}" for at in invented["time"]]
    return examined, _told(found)


def _as_if_then(data: _Data) -> tuple[int, str]:
    """Grid and physiology again with what had been recorded by an origin, and nothing later."""
    found, examined = [], 0
    for (source, subject), frame in data.raw.items():
        origins = data.origins[
            (data.origins["source"] == source) & (data.origins["subject"] == subject)
        ]
        for origin in origins["origin"].iloc[:: max(len(origins) // ORIGINS_OF_A_PERSON, 1)]:
            known = Readings(frame[frame["time"] <= origin], make_tally("read", []))
            series, _ = grid_people(order_readings(source, known), data.grid)
            then = build_corpus(series, data.physiology)
            [now] = origin_rows(data.corpus, origins[origins["origin"] == origin])
            if not _same_past(then, data.corpus, int(now), data.task.context_steps):
                found.append(f"{source}/{subject} {origin:%Y-%m-%d %H:%M}")
            examined += 1
    return examined, _told(found)


def _same_past(then: Corpus, now: Corpus, row: int, steps: int) -> bool:
    """Whether the context up to `row` is in both; the last reading may lie before the origin."""
    person = now.people.iloc[int(now.person_of(np.array(row)))]
    length = len(then.late_T)
    first = person["first"]
    begin = max(row + 1 - steps, first)
    both = slice(begin, min(row + 1, first + length))
    past = slice(both.start - first, both.stop - first)
    before, after = (
        np.where(corpus.observed_TC[rows], corpus.values_TC[rows], np.nan)
        for corpus, rows in ((now, both), (then, past))
    )
    if both.stop == row + 1:  # the origin's own slot may hold a later reading, which is masked
        before[-1, 0] = after[-1, 0] = np.nan
    return bool(np.allclose(before, after, rtol=1e-4, atol=1e-4, equal_nan=True))


def _future(data: _Data) -> tuple[int, str]:
    corpus, sample = data.corpus, data.sample
    wrong = np.zeros(len(sample), bool)
    last = corpus.people["last"].to_numpy()
    for turn in _one_of_each(sample):
        rows = origin_rows(corpus, sample.iloc[turn])
        ends = last[np.searchsorted(last, rows, side="right")]
        spoiled = np.zeros(len(corpus.late_T), bool)
        for row, end in zip(rows, ends, strict=True):
            spoiled[row + 1 : end] = True
        # The same rows in one batch each time: another batch sums in another order.
        gathered, again = data.gather(rows), data.gather(rows, _spoil(corpus, spoiled))
        for part in ("context_BLC", "context_observed_BLC", "future_BHF", "future_observed_BHF"):
            before, after = getattr(gathered, part), getattr(again, part)
            wrong[turn] |= (before != after).flatten(1).any(dim=1).numpy()
    return len(sample), _told(_names(sample, wrong))


def _training(data: _Data) -> tuple[int, str]:
    from nocturnal_kedro.series.scaler import fit_scaler

    corpus, train = data.corpus, rows_of_split(data.corpus, data.splits, "train")
    outside = np.ones(len(corpus.late_T), bool)
    outside[train] = False
    spoiled = _spoil(corpus, outside)
    found = []
    if fit_scaler(spoiled, data.splits) != data.scaler:
        found.append("the scaler moves with rows outside training")
    if len(data.train_rows):
        before, after = data.gather(data.train_rows), data.gather(data.train_rows, spoiled)
        if any((a != b).any() for a, b in zip(before, after, strict=True)):
            found.append("training windows hold rows from outside training")
    return len(data.train_rows), _told(found)


def _spoil(corpus: Corpus, rows: np.ndarray) -> Corpus:
    """The corpus with other values, and the other half observed, in `rows`."""
    values, observed = corpus.values_TC.copy(), corpus.observed_TC.copy()
    values[rows] = _SPOILED - values[rows]
    observed[rows] = ~observed[rows]
    return replace(corpus, values_TC=values, observed_TC=observed)


def _one_of_each(sample: pd.DataFrame) -> Iterator[np.ndarray]:
    """Positions in the sample, in turns that hold each person once at most."""
    turn = sample.groupby(["source", "subject"]).cumcount().to_numpy()
    for number in range(turn.max() + 1 if len(turn) else 0):
        yield np.flatnonzero(turn == number)


def _names(sample: pd.DataFrame, wrong: np.ndarray) -> list[str]:
    return [f"{r.source}/{r.subject} {r.origin:%Y-%m-%d %H:%M}" for r in sample[wrong].itertuples()]


def _told(found: list[str]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


CHECKS: dict[str, Callable[[_Data], tuple[int, str]]] = {
    "no person and no time lies in two splits": _disjoint,
    "every origin's day before and horizon lie in its split": _inside,
    "nobody is in the corpus twice": _twice,
    "every target is a reading, at its time": _targets,
    "what doses still do follows from earlier doses alone": _doses,
    "every observed slot has a reading of the source": _invented,
    "made from what was recorded by then, every context is the same": _as_if_then,
    "no context changes with what lies after its origin": _future,
    "the scaler and training windows see training rows alone": _training,
}
