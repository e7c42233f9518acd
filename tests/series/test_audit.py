"""The audit passes clean data, and each of its checks fails where its leak is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series import windows
from nocturnal_kedro.series.audit import (
    Audited,
    AuditOptions,
    audit_leaks,
    require_audited,
    require_passed,
)
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series, order_readings
from nocturnal_kedro.series.origins import Task, build_origins, data_fingerprint
from nocturnal_kedro.series.overlap import find_overlaps, mark_readings
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import Readings, make_tally
from nocturnal_kedro.series.windows import Scaler, WindowGatherer
from tests.conftest import invent_readings


@pytest.fixture
def clean(series: pd.DataFrame, corpus: Corpus, splits: pd.DataFrame, task: Task) -> dict[str, Any]:
    readings = invent_readings()
    return {
        "series": series,
        "corpus": corpus,
        "splits": splits,
        "origins": build_origins(corpus, splits, task)[0],
        "overlaps": find_overlaps(mark_readings(order_readings("invented", readings))),
        "raw": {
            ("invented", name): readings.frame[readings.frame["subject"] == name]
            for name in ("p1", "p4")
        },
        "task": task,
        "physiology": Physiology(),
        "grid": GridOptions(),
    }


def failed(given: dict[str, Any], **changes: Any) -> str:
    """What the failed checks found, one after the other."""
    audit = audit_leaks(Audited(**(given | changes)), AuditOptions())
    return " | ".join(f"{row.check}: {row.found}" for row in audit[~audit["passed"]].itertuples())


def test_clean_data_passes_and_everything_was_looked_at(clean: dict[str, Any]) -> None:
    audit = audit_leaks(Audited(**clean), AuditOptions())
    assert audit["passed"].all()
    assert len(audit) == 9
    assert (audit["examined"] > 0).all()
    require_passed(audit)
    data = data_fingerprint(clean["corpus"], clean["splits"], clean["origins"])
    require_audited(audit, data)
    with pytest.raises(InputError, match="not those that passed the leak audit"):
        require_audited(audit, data.upper())


def test_a_person_in_two_splits(clean: dict[str, Any]) -> None:
    splits = clean["splits"].copy()
    held_out = splits.index[splits["split"] == "patient"][0]
    again = splits.loc[[held_out]].assign(split="train")
    told = failed(clean, splits=pd.concat([splits, again]), origins=clean["origins"].iloc[:0])
    assert f"invented/{splits.loc[held_out, 'subject']} in patient, train" in told


def test_a_time_in_two_splits(clean: dict[str, Any]) -> None:
    splits = clean["splits"].copy()
    temporal = splits.index[splits["split"] == "temporal"][0]
    splits.loc[temporal, "start"] -= pd.Timedelta("2D")
    told = failed(clean, splits=splits)
    assert f"invented/{splits.loc[temporal, 'subject']} twice from" in told


def test_an_origin_whose_day_before_lies_in_training(clean: dict[str, Any]) -> None:
    origins = clean["origins"].copy()
    start = clean["splits"].query("split == 'temporal'").iloc[0]
    row = origins.index[(origins["subject"] == start["subject"]) & (origins["split"] == "temporal")]
    origins.loc[row[0], "origin"] = start["start"]
    told = failed(clean, origins=origins)
    assert f"origin's day before and horizon lie in its split: invented/{start['subject']}" in told


def test_somebody_under_two_names(clean: dict[str, Any]) -> None:
    frame = invent_readings().frame
    copy = frame[frame["subject"] == "p1"].assign(subject="twin")
    readings = Readings(pd.concat([frame, copy]), make_tally("read", []))
    overlaps = find_overlaps(mark_readings(order_readings("invented", readings)))
    audit = audit_leaks(Audited(**(clean | {"overlaps": overlaps})), AuditOptions())
    with pytest.raises(InputError, match=r"100.0 % of the readings of invented/p1 are those of"):
        require_passed(audit)


def test_a_filled_value_as_a_target(clean: dict[str, Any]) -> None:
    series = clean["series"].copy()
    rows = np.arange(len(series)) % 7 == 0
    series.loc[rows, "glucose_mg_dl"] = np.nan  # not read, yet observed in the corpus
    assert "every target is a reading" in failed(clean, series=series)
    shifted = clean["series"].assign(glucose_mg_dl=clean["series"]["glucose_mg_dl"].shift(-1))
    assert "every target is a reading" in failed(clean, series=shifted)


def test_insulin_on_board_of_a_later_dose(clean: dict[str, Any]) -> None:
    corpus = clean["corpus"]
    values = corpus.values_TC.copy()
    iob = CHANNELS.index("iob_u")
    values[:-12, iob] = values[12:, iob]  # what will be on board in an hour
    assert "what doses still do" in failed(clean, corpus=replace(corpus, values_TC=values))


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["context", "future"])
def test_a_context_that_sees_beyond_its_origin(
    leak: str, clean: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = WindowGatherer.gather

    def leaky(self: WindowGatherer, origin_rows: Any) -> Any:
        batch, later = gather(self, origin_rows), gather(self, origin_rows + 3)
        if leak == "context":  # smoothed with what comes after
            return batch._replace(context_BLC=(batch.context_BLC + later.context_BLC) / 2)
        return batch._replace(future_BHF=later.future_BHF)

    monkeypatch.setattr(WindowGatherer, "gather", leaky)
    assert "no context changes with what lies after its origin: invented" in failed(clean)


def test_a_scaler_fitted_to_everything(
    clean: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Scaler.fit.__func__
    monkeypatch.setattr(
        Scaler,
        "fit",
        classmethod(lambda cls, corpus, rows: fit(cls, corpus, np.arange(len(corpus.late_T)))),
    )
    assert "the scaler moves with rows outside training" in failed(clean)


def test_training_windows_that_reach_across_a_boundary(
    clean: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if training's gatherer did not know where a split begins."""
    length = len(clean["corpus"].late_T)
    whole = np.array([[0], [length], [length]])
    monkeypatch.setattr(windows, "_stretches", lambda corpus, splits: whole)
    assert "training windows hold rows from outside training" in failed(clean)


def leaky(clean: dict[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """A series and corpus of other readings than the source gave."""
    series, _ = build_series({"invented": Readings(frame, make_tally("read", []))}, GridOptions())
    return {"series": series, "corpus": build_corpus(series, Physiology())}


EARLY = "made from what was recorded by then, every context is the same: invented/p"


def test_doses_before_their_time(clean: dict[str, Any]) -> None:
    frame = invent_readings().frame
    frame["bolus_u"] = frame.groupby("subject")["bolus_u"].shift(-6)  # half an hour early
    assert EARLY in failed(clean, **leaky(clean, frame))


@pytest.mark.slow
@pytest.mark.parametrize("anchor", ["bedtime", "meal"])
def test_from_other_anchors_meals_before_their_time(anchor: str, clean: dict[str, Any]) -> None:
    task = Task(anchor=anchor)
    origins, _ = build_origins(clean["corpus"], clean["splits"], task)
    asked = clean | {"task": task, "origins": origins}
    assert not failed(asked)
    frame = invent_readings().frame
    frame["carbs_g"] = frame.groupby("subject")["carbs_g"].shift(-1)  # five minutes early
    assert EARLY in failed(asked, **leaky(clean, frame))


def test_glucose_smoothed_with_what_comes_after(clean: dict[str, Any]) -> None:
    frame = invent_readings().frame
    smooth = frame.groupby("subject")["glucose_mg_dl"].rolling(13, center=True, min_periods=1)
    frame["glucose_mg_dl"] = smooth.mean().to_numpy()
    assert EARLY in failed(clean, **leaky(clean, frame))


def test_readings_that_nobody_took(clean: dict[str, Any]) -> None:
    lost = dict(clean["raw"])
    for person, frame in lost.items():
        gap = np.arange(len(frame)) % 3 > 0  # as if two of three had been interpolated
        lost[person] = frame.assign(glucose_mg_dl=frame["glucose_mg_dl"].mask(gap))
    assert "every observed slot has a reading of the source: invented/p" in failed(clean, raw=lost)


def test_a_night_that_is_a_copy_of_another_night_of_the_same_person(clean: dict[str, Any]) -> None:
    """As in a published file that writes some days under two dates."""
    frame = invent_readings().frame
    day = frame["time"].dt.normalize()
    source = (frame["subject"] == "p2") & (day == pd.Timestamp("2026-01-07"))
    target = (frame["subject"] == "p2") & (day == pd.Timestamp("2026-01-17"))
    frame.loc[target, "glucose_mg_dl"] = frame.loc[source, "glucose_mg_dl"].to_numpy()
    readings = Readings(frame, make_tally("read", []))
    overlaps = find_overlaps(mark_readings(order_readings("invented", readings)))
    told = failed(clean, overlaps=overlaps)
    assert "of the readings of invented/p2 come again at another time, 2026-01-07" in told
