"""Cells are trained once, forecast once, and scored alike; none has learnt what it is tested on."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.series.splits import recut_splits
from nocturnal_kedro.series.variations import keep_days, learn_from, only, read_every_15_minutes
from nocturnal_kedro.training import cells as at_work
from nocturnal_kedro.training.artifact import Artifact, load_artifact, save_artifact
from nocturnal_kedro.training.cells import Bench, Cell, score, share_of, vary
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import NOTHING_KEPT, Kept, fit_model, require_apart
from nocturnal_kedro.training.forecast import forecast_origins
from nocturnal_kedro.training.options import Hardware
from nocturnal_kedro.training.trained import Trained
from tests.sweeps.invented import CUT, TINY, TRAINING, invent_data, people_in


@pytest.fixture(scope="module")
def whole() -> Data:
    return invent_data({"a": 4, "b": 4}, days=12)


def of_source(data: Data, source: str) -> Data:
    names = data.corpus.people["source"] + "/" + data.corpus.people["subject"]
    return vary(data, splits=learn_from(data.splits, set(names[names.str.startswith(source)])))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(Hardware(), Kept(trained=Trained(tmp_path_factory.mktemp("trained"))), {})


@pytest.fixture(scope="module")
def start(whole: Data) -> Cell:
    return Cell("zero-shot", "a", "ttm", of_source(whole, "a"), TRAINING, TINY, seed=3)


@pytest.fixture(scope="module")
def tuned(whole: Data, start: Cell) -> Cell:
    """Adapted to b, with the bands that a's model had."""
    data = of_source(whole, "b")
    return Cell(
        "full", "a, then b", "ttm", data, TRAINING, seed=3, start=start, bands="start",
        number=14.0, against="b",
    )  # fmt: skip


@pytest.fixture(scope="module")
def thin(whole: Data) -> Cell:
    thinned = vary(whole, corpus=read_every_15_minutes(whole.corpus))
    return Cell("sampling", "every 15", "last_value", thinned, TRAINING)


def test_a_zero_shot_cell_is_its_start_bit_for_bit(bench: Bench, start: Cell, whole: Data) -> None:
    data = of_source(whole, "b")
    cell = Cell("q", "as it is", "ttm", data, TRAINING, start=start, zero_shot=True, seed=3)
    artifact, its_start = bench.train(cell), bench.train(start)
    assert artifact.record["key"] == its_start.record["key"]
    assert all(np.array_equal(artifact.state[n], w) for n, w in its_start.state.items())
    expected, _ = forecast_origins(its_start, data)
    pd.testing.assert_frame_equal(bench.forecast(cell, artifact), expected, check_exact=True)
    own = forecast_origins(its_start, start.data)[0].merge(
        expected, on=["source", "subject", "origin", "step"], suffixes=("", "_b")
    )
    assert len(own)
    np.testing.assert_array_equal(own["forecast_mg_dl"], own["forecast_mg_dl_b"])
    np.testing.assert_array_equal(own["q0.05"], own["q0.05_b"])


def test_bands_are_of_its_own_validation_or_of_its_starts(
    bench: Bench, start: Cell, tuned: Cell
) -> None:
    artifact, its_start = bench.train(tuned), bench.train(start)
    assert artifact.base["sha256"] != its_start.base
    assert any(not np.array_equal(artifact.state[n], w) for n, w in its_start.state.items())
    as_start = bench.forecast(tuned, artifact)
    as_own = bench.forecast(replace(tuned, bands="own"), artifact)
    pd.testing.assert_frame_equal(as_own, forecast_origins(artifact, tuned.data)[0])
    taken = replace(artifact, spread=its_start.spread)
    pd.testing.assert_frame_equal(as_start, forecast_origins(taken, tuned.data)[0])
    np.testing.assert_array_equal(as_start["forecast_mg_dl"], as_own["forecast_mg_dl"])
    assert not np.allclose(as_start["q0.05"], as_own["q0.05"])


def test_forecasts_are_kept_and_found_byte_for_byte(
    bench: Bench, start: Cell, whole: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, kept = bench.train(start), {}
    first = Bench(bench.hardware, bench.kept, kept).forecast(start, artifact)
    [(key, written)] = kept.items()
    made = []
    real = at_work.forecast_origins
    monkeypatch.setattr(
        at_work, "forecast_origins", lambda *given: (made.append(given), real(*given))[1]
    )
    other = Bench(bench.hardware, bench.kept, kept)
    found = other.forecast(start, artifact)
    assert not made
    assert kept == {key: written}
    pd.testing.assert_frame_equal(found, first, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(written)), first, check_exact=True)

    shorter = keep_days(start.data.splits, 0.5)
    other_start = replace(start, training=start.training.with_seed(4))
    changed: list[tuple[str, Callable[[], Cell]]] = [
        ("bands", lambda: replace(start, bands="start", start=other_start)),
        ("data", lambda: replace(start, tested=vary(start.data, splits=shorter))),
        ("readings", lambda: replace(
            start, tested=vary(start.data, corpus=read_every_15_minutes(whole.corpus))
        )),
        ("code", lambda: start),
    ]  # fmt: skip
    for number, (what, cell) in enumerate(changed, 1):
        if what == "code":
            monkeypatch.setattr(at_work, "key_of", lambda kind, name, asked: "of other code")
        other.forecast(cell(), artifact)
        assert len(made) == number, what
        assert len(kept) == number + 1, what
    assert kept[key] == written


def by_hand(cell: Cell, frame: pd.DataFrame, whole: Data) -> pd.DataFrame:
    """Squared errors of the cell's forecasts against every reading of the whole."""
    corpus, found = whole.corpus, {}
    for person in corpus.people.itertuples():
        times = pd.date_range(person.start, periods=person.last - person.first, freq="5min")
        own = slice(person.first, person.last)
        glucose = np.where(corpus.observed_TC[own, 0], corpus.values_TC[own, 0], np.nan)
        found |= dict(
            zip(((person.source, person.subject, t) for t in times), glucose, strict=True)
        )
    times = frame["origin"] + pd.to_timedelta(5 * frame["step"], unit="min")
    frame = frame.assign(
        time=times,
        truth=[found[key] for key in zip(frame["source"], frame["subject"], times, strict=True)],
    )
    return frame.assign(squared=(frame["truth"] - frame["forecast_mg_dl"]) ** 2)


KEY = ["source", "subject", "origin"]


def test_all_are_scored_by_every_reading_of_the_whole(
    bench: Bench, thin: Cell, whole: Data
) -> None:
    """Also what was given one reading of three."""
    artifact = bench.train(thin)
    frame = bench.forecast(thin, artifact)
    scores = score(thin, frame, artifact.spread, whole.corpus)
    expected = by_hand(thin, frame, whole).groupby(KEY)["squared"].agg(["mean", "count"])
    own = scores.set_index(KEY).loc[expected.index]
    np.testing.assert_allclose(own["mse"], expected["mean"], rtol=1e-5)
    assert (own["points"] == expected["count"]).all()
    assert (own["points"] == 48).all()
    seen = frame.groupby(KEY)["target_mg_dl"].count()
    assert (seen == 16).all()
    assert set(scores["split"]) >= {"validation", *TEST_SPLITS}
    labels = scores[["question", "cell", "against", "model"]].drop_duplicates()
    assert labels.to_numpy().tolist() == [["sampling", "every 15", "", "last_value"]]
    assert scores["seed"].isna().all()
    assert set(scores["data"]) == {thin.data.fingerprint()}


def test_readings_by_the_clock_and_nights_of_some(bench: Bench, thin: Cell, whole: Data) -> None:
    """Horizons are of 4 hours: of 00:05 to 04:00 those before 03:00 are 35, less those before 1."""
    artifact = bench.train(thin)
    frame = bench.forecast(thin, artifact)
    restricted = replace(thin, clock=(1, 3), tested_people=frozenset({"a/p1", "b/p2"}))
    scores = score(restricted, frame, artifact.spread, whole.corpus)
    assert set(scores["source"] + "/" + scores["subject"]) == {"a/p1", "b/p2"}
    judged = by_hand(thin, frame, whole)
    judged = judged[judged["time"].dt.hour.isin((1, 2))]
    expected = judged.groupby(KEY)["squared"].agg(["mean", "count"])
    own = scores.set_index(KEY)
    expected = expected.loc[own.index]
    np.testing.assert_allclose(own["mse"], expected["mean"], rtol=1e-5)
    assert (own["points"] == 24).all()
    assert (expected["count"] == 24).all()


def test_what_was_trained_is_scored_and_nothing_else(
    bench: Bench, start: Cell, tuned: Cell, thin: Cell, whole: Data
) -> None:
    cells = [thin, start, tuned]
    made = bench.train_all(cells)
    scores = bench.score_all(cells, made, whole.corpus)
    assert scores["cell"].drop_duplicates().tolist() == ["every 15", "a", "a, then b"]
    of_tuned = scores[scores["cell"] == "a, then b"]
    assert set(of_tuned["number"]) == {14}
    assert set(of_tuned["seed"]) == {3}
    assert set(of_tuned["against"]) == {"b"}
    longer = tuned.training.model_copy(update={"epochs": 9})
    changed = [
        replace(thin, name="other"),
        replace(thin, bands="start"),
        replace(start, given=start.given | {"learning_rate": 0.1}),
        replace(tuned, training=longer),
        replace(tuned, start=replace(start, training=longer)),
    ]
    swapped = [
        [
            one if one.name == cell.name or (one.name == "other" and cell is thin) else cell
            for cell in cells
        ]
        for one in changed
    ]
    for others in (cells[:2], cells[::-1], *swapped):
        with pytest.raises(InputError, match=rf"3 cells were trained, and .* give {len(others)}"):
            bench.score_all(others, made, whole.corpus)
    thinner = replace(start, data=vary(start.data, splits=keep_days(start.data.splits, 0.5)))
    with pytest.raises(InputError, match="Run training again, whole, with the same --params"):
        bench.score_all([thin, thinner, tuned], made, whole.corpus)
    gone = [made[0] | {"key": "0" * 20}, *made[1:]]
    with pytest.raises(InputError, match=r"the model of 'every 15' of 'sampling', last_value is"):
        bench.score_all(cells, gone, whole.corpus)


def test_a_sweep_keeps_its_trainings() -> None:
    with pytest.raises(ValueError, match="keeps its trainings"):
        Bench(Hardware(), NOTHING_KEPT)


@given(cells=st.integers(0, 30), parts=st.integers(1, 8))
def test_shares_hold_every_cell_once(cells: int, parts: int) -> None:
    all_of_it: Any = list(range(cells))
    dealt = [share_of(all_of_it, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(cell for share in dealt for cell in share) == all_of_it
    sizes = [len(share) for share in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert share_of(all_of_it, "1/1") == all_of_it


@pytest.mark.parametrize(
    "share", ["", "1", "0/4", "5/4", "1/0", "0/0", "-1/4", "1/2/3", "a/b", "²/3", "1.0/2", " / "]
)
def test_what_is_no_share_is_told(share: str) -> None:
    with pytest.raises(InputError, match=r"'share' is .*; it is K/N"):
        share_of([], share)


# Whose days weights have learnt from.


Spans = set[tuple[str, str, pd.Timestamp, pd.Timestamp]]


def spans_of(*datas: Data) -> Spans:
    return {
        (row.source, row.subject, row.start, row.end)
        for data in datas
        for row in data.splits.itertuples()
        if row.split in ("train", "validation")
    }


def told_by(artifact: Artifact) -> Spans:
    return {
        (of["source"], of["subject"], pd.Timestamp(of["start"]), pd.Timestamp(of["end"]))
        for of in artifact.record["learnt_from"]
    }


def retested(data: Data, *people: str) -> Data:
    """The data with these people held out, who were not."""
    cut = CUT.model_copy(update={"hold_out": people})
    return vary(data, splits=recut_splits(data.splits, cut))


@pytest.fixture(scope="module")
def chain(whole: Data, bench: Bench, start: Cell, tuned: Cell, tmp_path_factory: Any) -> Path:
    """a, fine-tuned on b, then on b's last days by adapters; and the same weights as they are."""
    folder = tmp_path_factory.mktemp("chain")
    save_artifact(bench.train(tuned), folder / "second")
    few = vary(tuned.data, splits=keep_days(tuned.data.splits, 0.5))
    given = {"strategy": "fine_tune", "weights": str(folder / "second"), "lora": {"rank": 2}}
    save_artifact(fit_model("ttm", given, few, TRAINING), folder / "third")
    return folder


def test_a_chain_of_fits_keeps_all_days_that_it_has_learnt_from(
    chain: Path, bench: Bench, start: Cell, tuned: Cell
) -> None:
    few = vary(tuned.data, splits=keep_days(tuned.data.splits, 0.5))
    assert told_by(bench.train(start)) == spans_of(start.data)
    assert told_by(load_artifact(chain / "second")) == spans_of(start.data, tuned.data)
    third = load_artifact(chain / "third")
    assert told_by(third) == spans_of(start.data, tuned.data, few)
    assert set(third.people) == people_in(start.data.splits, "train") | people_in(
        tuned.data.splits, "train"
    )
    given = {"strategy": "zero_shot", "weights": str(chain / "third")}
    assert told_by(fit_model("ttm", given, few, TRAINING)) == told_by(third)


def test_weights_that_learnt_from_a_day_tested_on_are_refused(
    chain: Path, whole: Data, bench: Bench, start: Cell
) -> None:
    """Also where it was the first of three fits, and a day that chose when to stop."""
    third = load_artifact(chain / "third")
    [of_a, *_] = sorted(people_in(start.data.splits, "train"))
    only_chose = people_in(start.data.splits, "validation") - people_in(start.data.splits, "train")
    for person in (of_a, sorted(only_chose)[0]):
        other = retested(whole, person)
        told = rf"'ttm' have learnt from days of \d+ people.*{person}|of 1 people.*{person}"
        for strategy in ("zero_shot", "fine_tune"):
            given = {"strategy": strategy, "weights": str(chain / "third")}
            with pytest.raises(InputError, match=told):
                fit_model("ttm", given, other, TRAINING)
        with pytest.raises(InputError, match="Start from weights of other people"):
            bench.forecast(replace(start, tested=other), third)


def test_a_persons_earlier_days_are_accepted_up_to_the_first_that_is_tested_on(
    bench: Bench, whole: Data, start: Cell
) -> None:
    artifact = bench.train(start)
    few = vary(start.data, splits=keep_days(start.data.splits, 0.5))
    for fewer in (whole, few):
        require_apart(artifact, fewer)
    [person, *_] = sorted(people_in(start.data.splits, "train"))
    alone = only(whole.corpus, [person])
    splits = start.data.splits
    own = splits[splits["source"] + "/" + splits["subject"] == person]
    require_apart(artifact, replace(whole, corpus=alone, splits=own))
    tested = own["split"] == "temporal"
    begins = own.loc[tested, "start"].iloc[0]
    first = own["start"].min()  # days before it, and up to it, are apart as well
    before = own[tested].assign(start=first - pd.Timedelta(days=3), end=first)
    require_apart(artifact, replace(whole, corpus=alone, splits=before))
    a_day_sooner = own.assign(start=own["start"].mask(tested, begins - pd.Timedelta(days=1)))
    with pytest.raises(InputError, match=f"days of 1 people that are tested on now, {person}"):
        require_apart(artifact, replace(whole, corpus=alone, splits=a_day_sooner))


def test_weights_that_do_not_tell_their_days_are_refused(
    chain: Path, bench: Bench, whole: Data, start: Cell, tmp_path: Path
) -> None:
    third = load_artifact(chain / "third")
    silent = {name: told for name, told in third.record.items() if name != "learnt_from"}
    save_artifact(replace(third, record=silent), tmp_path / "silent")
    given = {"strategy": "zero_shot", "weights": str(tmp_path / "silent")}
    told = r"does not tell which days it has learnt from.*Run the training pipeline again"
    with pytest.raises(InputError, match=told):
        fit_model("ttm", given, start.data, TRAINING)
