"""Proofs about what reaches a model: nothing after the origin, no unobserved target."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus, read_corpus, write_corpus
from nocturnal_kedro.series.covariates import AMOUNTS, COVARIATES
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task, build_origins, origin_rows, split_segments
from nocturnal_kedro.series.physiology import Physiology, action_kernels
from nocturnal_kedro.series.scaler import Scaler, fit_scaler
from nocturnal_kedro.series.schema import Readings, make_tally
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.series.windows import Batch, Channels, WindowGatherer, fill_forward
from tests.conftest import SCALER, USUAL, grid, invent_readings


def gatherer_of(corpus: Corpus, splits: pd.DataFrame, task: Task) -> WindowGatherer:
    return WindowGatherer(corpus, splits, SCALER, task, USUAL)


@pytest.mark.parametrize("seconds_late", [0, 140, -140])
def test_noise_after_an_origin_leaves_its_input_bit_identical(
    task: Task, seconds_late: int
) -> None:
    """Raw readings after the origin become noise; the model's input does not change by one bit."""
    readings = invent_readings(people=4, days=14)
    readings.frame["time"] += pd.Timedelta(seconds=seconds_late)
    splits = build_splits(grid(readings), SplitOptions())
    origins, _ = build_origins(build_corpus(grid(readings), Physiology()), splits, task)
    for night in origins.groupby("subject").nth(1).itertuples():
        noisy = readings.frame.copy()
        after = (noisy["subject"] == night.subject) & (noisy["time"] > night.origin)
        draw = np.random.default_rng(3)
        for column, low, high in (
            ("glucose_mg_dl", 45, 390),
            ("basal_u_h", 0, 4),
            ("bolus_u", 0, 0.2),
            ("carbs_g", 0, 90),
        ):
            noisy.loc[after, column] = draw.uniform(low, high, after.sum())
        one = origins[(origins["subject"] == night.subject) & (origins["origin"] == night.origin)]
        batches = []
        for frame in (readings.frame, noisy):
            corpus = build_corpus(grid(Readings(frame, make_tally("read", []))), Physiology())
            rows = torch.from_numpy(origin_rows(corpus, one))
            batches.append(gatherer_of(corpus, splits, task).gather(rows))
        for name in ("context_BLC", "context_observed_BLC", "future_BHF", "future_observed_BHF"):
            assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name
        assert not torch.equal(batches[0].target_BH, batches[1].target_BH)  # the noise was there


@settings(max_examples=15)
@given(share=st.floats(0.0, 0.6), seed=st.integers(0, 99))
def test_an_unobserved_slot_is_never_a_target(share: float, seed: int) -> None:
    task = Task()
    readings = invent_readings(people=1, days=4)
    lost = np.random.default_rng(seed).random(len(readings.frame)) < share
    lost[[0, -1]] = False
    readings.frame.loc[lost, "glucose_mg_dl"] = np.nan
    series = grid(readings)
    corpus = build_corpus(series, Physiology())
    everything = pd.DataFrame(
        {
            "source": ["invented"],
            "subject": ["p0"],
            "split": ["train"],
            "start": [series["time"].iloc[0]],
            "end": [series["time"].iloc[-1] + pd.Timedelta("5min")],
        }
    )
    rows = torch.arange(300, len(series) - 20, 37)
    batch = gatherer_of(corpus, everything, task).gather(rows)
    glucose = series["glucose_mg_dl"].to_numpy()
    for number, row in enumerate(rows.tolist()):
        expected = np.full(task.horizon_steps, np.nan)
        ahead = glucose[row + 1 : row + 1 + task.horizon_steps]
        expected[: len(ahead)] = ahead
        np.testing.assert_array_equal(batch.target_observed_BH[number], ~np.isnan(expected))
        got = SCALER.to_mg_dl(batch.target_BH[number]).numpy()
        np.testing.assert_allclose(
            got[~np.isnan(expected)], expected[~np.isnan(expected)], rtol=1e-5
        )


def test_a_late_reading_of_the_origin_slot_is_not_in_the_context(task: Task) -> None:
    readings = invent_readings(people=4, days=14)
    readings.frame["time"] += pd.Timedelta(seconds=100)
    series = grid(readings)
    corpus = build_corpus(series, Physiology())
    splits = build_splits(series, SplitOptions())
    origins, _ = build_origins(corpus, splits, task)
    batch = gatherer_of(corpus, splits, task).gather(torch.from_numpy(origin_rows(corpus, origins)))
    assert not batch.context_observed_BLC[:, -1, 0].any()
    assert batch.context_observed_BLC[:, -2, 0].all()
    assert torch.equal(batch.context_BLC[:, -1, 0], batch.context_BLC[:, -2, 0])


def test_context_is_cut_at_the_split_boundary(
    corpus: Corpus, splits: pd.DataFrame, task: Task
) -> None:
    origins, _ = build_origins(corpus, splits, task)
    temporal = origins[origins["split"] == "temporal"].groupby("subject").head(1)
    batch = gatherer_of(corpus, splits, task).gather(
        torch.from_numpy(origin_rows(corpus, temporal))
    )
    begins = temporal.merge(splits, on=["source", "subject", "split"])["start"]
    inside = ((temporal["origin"].reset_index(drop=True) - begins) / pd.Timedelta("5min")).astype(
        int
    )
    for number, steps in enumerate(inside + 1):
        observed = batch.context_observed_BLC[number, :, 0]
        assert steps < task.context_steps
        assert not observed[:-steps].any()
        assert observed[-steps:].all()


def test_known_future_is_the_decay_of_doses_up_to_the_origin(task: Task) -> None:
    readings = invent_readings(people=1, days=4)
    frame = readings.frame
    frame["bolus_u"] = np.nan
    frame["basal_u_h"] = 0.0
    origin = pd.Timestamp("2026-01-08 00:00")
    given = origin - pd.Timedelta("1h")
    frame.loc[frame["time"] == given, "bolus_u"] = 4.0
    frame.loc[frame["time"] == origin + pd.Timedelta("1h"), "bolus_u"] = 9.0  # must not be known
    series = grid(Readings(frame, make_tally("read", [])))
    corpus = build_corpus(series, Physiology())
    everything = pd.DataFrame(
        {"source": ["invented"], "subject": ["p0"], "split": ["train"],
         "start": [series["time"].iloc[0]], "end": [series["time"].iloc[-1]]}
    )  # fmt: skip
    row = int((origin - series["time"].iloc[0]) / pd.Timedelta("5min"))
    batch = gatherer_of(corpus, everything, task).gather(torch.tensor([row]))
    kernel = np.pad(action_kernels(Physiology())[0], (0, 200))
    steps_since = 12 + np.arange(1, task.horizon_steps + 1)
    iob = batch.future_BHF[0, :, 0].numpy() * SCALER.std["iob_u"] + SCALER.mean["iob_u"]
    np.testing.assert_allclose(iob, 4.0 * kernel[steps_since], atol=1e-4)
    assert batch.future_observed_BHF[0, :, 0].all()


def test_gathering_equals_slicing_the_series_by_hand(
    corpus: Corpus, series: pd.DataFrame, splits: pd.DataFrame, task: Task
) -> None:
    patient = splits.loc[splits["split"] == "patient", "subject"].iloc[0]
    own = series[series["subject"] == patient].reset_index(drop=True)
    row = 700
    first = corpus.people.set_index("subject").loc[patient, "first"]
    batch = gatherer_of(corpus, splits, task).gather(torch.tensor([first + row]))
    expected = own["glucose_mg_dl"][row - task.context_steps + 1 : row + 1].to_numpy()
    got = SCALER.to_mg_dl(batch.context_BLC[0, :, 0]).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    clock = batch.context_BLC[0, :, 3:].numpy()
    minutes = own["time"][row - task.context_steps + 1 : row + 1].dt
    angle = 2 * np.pi * (minutes.hour * 60 + minutes.minute) / 1440
    np.testing.assert_allclose(clock, np.stack([np.sin(angle), np.cos(angle)], 1), atol=1e-6)


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5, width=32)), min_size=1, max_size=50))
def test_fill_forward_is_pandas_ffill_with_zero_before(values: list[float | None]) -> None:
    column = pd.Series(values, dtype="float32")
    filled = fill_forward(
        torch.tensor(column.fillna(99).to_numpy())[None, :, None],
        torch.tensor(column.notna().to_numpy())[None, :, None],
    )
    np.testing.assert_array_equal(filled[0, :, 0], column.ffill().fillna(0))


def test_an_unobserved_amount_is_no_second_dose_and_a_level_stands(task: Task) -> None:
    """Amounts are told by hand from the mean and the readings; the mask tells 0 from a mean."""
    readings = invent_readings(people=1, days=4)
    frame = readings.frame
    walk = np.random.default_rng(5).uniform(5, 50, len(frame))
    frame["steps"] = np.where(np.arange(len(frame)) % 7 < 3, walk, np.nan)
    frame["heart_rate"] = np.where(np.arange(len(frame)) % 7 < 3, 60 + walk, np.nan)
    series = grid(Readings(frame, make_tally("read", [])))
    series.loc[700:710, ["basal_u_h", "bolus_u"]] = np.nan
    series.loc[650:900, "carbs_g"] = np.nan
    everything = pd.DataFrame(
        {"source": ["invented"], "subject": ["p0"], "split": ["train"],
         "start": [series["time"].iloc[0]], "end": [series["time"].iloc[-1]]}
    )  # fmt: skip
    corpus = build_corpus(series, Physiology())
    scaler = Scaler.fit(corpus, np.arange(len(series)))
    channels = Channels(("insulin_u", "carbs_g", "steps", "heart_rate"))
    batch = WindowGatherer(corpus, everything, scaler, task, channels).gather(torch.tensor([800]))
    for number, name in enumerate(channels.context):
        values_L = corpus.values_TC[800 - 511 : 801, CHANNELS.index(name)]
        seen_L = corpus.observed_TC[800 - 511 : 801, CHANNELS.index(name)]
        assert name == "glucose_mg_dl" or 0 < seen_L.sum() < 512
        scaled = pd.Series((values_L - scaler.mean[name]) / scaler.std[name]).where(seen_L)
        expected = scaled.fillna(0) if name in AMOUNTS else scaled.ffill().fillna(0)
        np.testing.assert_allclose(batch.context_BLC[0, :, number], expected, atol=1e-5)
        np.testing.assert_array_equal(batch.context_observed_BLC[0, :, number], seen_L)
    assert set(AMOUNTS) == {"insulin_u", "carbs_g", "steps"}


def test_scaler_sees_training_rows_alone(corpus: Corpus) -> None:
    rows = np.arange(1000)
    changed = corpus.values_TC.copy()
    changed[1000:] += 1e4
    other = replace(corpus, values_TC=changed)
    assert Scaler.fit(corpus, rows) == Scaler.fit(other, rows)
    glucose = corpus.values_TC[:1000, 0][corpus.observed_TC[:1000, 0]]
    assert Scaler.fit(corpus, rows).mean["glucose_mg_dl"] == pytest.approx(glucose.mean(), rel=1e-6)
    assert Scaler.fit(corpus, rows).std["glucose_mg_dl"] == pytest.approx(glucose.std(), rel=1e-5)


def test_a_batch_has_one_shape_everywhere(corpus: Corpus, splits: pd.DataFrame, task: Task) -> None:
    batch = gatherer_of(corpus, splits, task).gather(torch.tensor([600, 900]))
    assert isinstance(batch, Batch)
    assert [tuple(part.shape) for part in batch] == [
        (2, 512, 5), (2, 512, 5), (2, 96, 4), (2, 96, 4), (2, 96), (2, 96)
    ]  # fmt: skip
    assert all(torch.isfinite(part.float()).all() for part in batch)


def test_a_dose_that_acts_longer_than_the_context_is_refused(splits: pd.DataFrame) -> None:
    series = grid(invent_readings(people=4, days=3))
    corpus = build_corpus(series, Physiology(carbs_action_minutes=3000))
    with pytest.raises(InputError, match="doses act for 600 steps, more than the context's 512"):
        gatherer_of(corpus, splits, Task())


def test_series_of_several_sources_keep_apart() -> None:
    both = {"one": invent_readings(people=2, days=3), "two": invent_readings(people=2, days=3)}
    series, _ = build_series(both, GridOptions())
    corpus = build_corpus(series, Physiology())
    assert corpus.people[["source", "subject"]].duplicated().sum() == 0
    assert len(corpus.people) == 4


def test_a_corpus_left_on_disk_gives_the_same_windows(task: Task, tmp_path: Path) -> None:
    """At any row: with gaps and late readings, where segments and people begin and end."""
    readings = invent_readings(people=4, days=14)
    frame, draw = readings.frame, np.random.default_rng(1)
    frame["time"] += pd.to_timedelta(draw.choice([-140, 0, 140], len(frame)), unit="s")
    frame.loc[draw.random(len(frame)) < 0.3, "glucose_mg_dl"] = np.nan
    for lost in draw.integers(0, len(frame), 20):
        frame.loc[lost : lost + 700, ["glucose_mg_dl", "basal_u_h", "bolus_u"]] = np.nan
    frame["heart_rate"] = np.where(draw.random(len(frame)) < 0.01, 70.0, np.nan)
    series = grid(readings)
    corpus = build_corpus(series, Physiology())
    splits = build_splits(series, SplitOptions())
    splits = splits.drop(splits.index[splits["split"] == "validation"][:1])  # a stretch of none
    write_corpus(corpus, tmp_path / "corpus")
    mapped = read_corpus(tmp_path / "corpus")
    assert isinstance(mapped.values_TC, np.memmap)
    begin, end, _ = split_segments(corpus, splits)
    first = corpus.people["first"].to_numpy()
    edges = np.concatenate([begin, begin + 1, begin + 300, end - 97, end - 1, first])
    rows = np.unique(np.concatenate([edges, np.arange(0, len(series), 37)]))
    for covariates in ((), COVARIATES):
        every = Channels(tuple(covariates))
        scaler = fit_scaler(corpus, splits)
        here = WindowGatherer(corpus, splits, scaler, task, every, resident=True)
        there = WindowGatherer(mapped, splits, scaler, task, every, resident=False)
        for part in torch.from_numpy(rows).split(64):
            batch = here.gather(part)
            for one, other in zip(batch, there.gather(part), strict=True):
                assert torch.equal(one, other)
            assert not batch.future_BHF[~batch.future_observed_BHF].any()
            assert here.count_targets(part) == there.count_targets(part)


@pytest.mark.slow
def test_a_corpus_larger_than_memory_is_read_where_it_is_used(tmp_path: Path) -> None:
    """Of 2 GB on disk, most of them a hole, windows take what they touch."""
    command = [sys.executable, "-m", "tests.series._large", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bytes_on_disk, taken = map(int, done.stdout.split())
    assert bytes_on_disk > 2e9
    assert taken < 0.5e9
