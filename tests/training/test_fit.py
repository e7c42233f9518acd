from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, build_origins, rows_of_split
from nocturnal_kedro.series.scaler import fit_scaler
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.training import history
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_baseline, fit_model
from nocturnal_kedro.training.forecast import EVERYTHING, forecast
from nocturnal_kedro.training.options import Training

TINY = {"preset": "tiny"}


@pytest.fixture(scope="module")
def artifact(data: Data) -> Artifact:
    return fit_model("ttm", TINY, data, Training(epochs=2, steps_per_epoch=10))


def test_fitting_records_what_it_was_fitted_to(artifact: Artifact, data: Data) -> None:
    assert artifact.record["data"] == data.fingerprint()
    assert artifact.options["network"]["d_model"] == 16
    assert artifact.options["covariates"] == ["iob_u", "cob_g", "clock"]
    held_out = data.splits.loc[data.splits["split"] == "patient", "subject"]
    assert not {f"invented/{subject}" for subject in held_out} & set(artifact.people)
    assert artifact.people == data.trained_people()
    assert artifact.record["trained_parameters"] == artifact.record["parameters"]


def test_forecasts_hold_every_origin_and_step_and_true_targets(
    artifact: Artifact, data: Data, series: pd.DataFrame
) -> None:
    nights = data.origins[data.origins["split"] != "train"]
    frame, seconds = forecast(artifact, data.corpus, data.splits, data.origins)
    assert seconds > 0
    assert list(frame.columns) == [
        "source", "subject", "origin", "step", "target_mg_dl", "forecast_mg_dl",
        *(f"q{level:g}" for level in (0.01, *np.arange(1, 20) / 20, 0.99)),
    ]  # fmt: skip
    assert len(frame) == 96 * len(nights)
    frame["time"] = frame["origin"] + pd.to_timedelta(5 * frame["step"], unit="min")
    truth = frame.merge(series, on=["source", "subject", "time"], how="left")
    # To float32, in which whole numbers of mg/dL are exact.
    np.testing.assert_array_equal(
        truth["target_mg_dl"], truth["glucose_mg_dl"].astype(np.float32).astype(float)
    )


@pytest.mark.parametrize("name", ["ttm", "chronos2"])
def test_quantiles_of_every_model_hold_what_they_say_on_validation(name: str, data: Data) -> None:
    """Not on the nights tested: there it is what is measured."""
    fitted = fit_model(name, TINY, data, Training(epochs=1, steps_per_epoch=3))
    frame, _ = forecast(fitted, data.corpus, data.splits, data.origins)
    quantiles = frame.filter(regex=r"^q")
    assert (quantiles.diff(axis=1).iloc[:, 1:] >= 0).all().all()
    nights = data.origins[data.origins["split"] == "validation"]
    seen = frame.merge(nights).dropna(subset="target_mg_dl")
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        held = (seen["target_mg_dl"] <= seen[f"q{level:g}"]).mean()
        assert held == pytest.approx(level, abs=0.03), level


def test_last_value_is_the_last_reading(data: Data, series: pd.DataFrame) -> None:
    fitted = fit_baseline("last_value", {}, data, Training())
    frame, _ = forecast(fitted, data.corpus, data.splits, data.origins)
    at_origin = series.rename(columns={"time": "origin"})[["subject", "origin", "glucose_mg_dl"]]
    joined = frame.merge(at_origin, on=["subject", "origin"])
    np.testing.assert_array_equal(
        joined["forecast_mg_dl"], joined["glucose_mg_dl"].astype(np.float32).astype(float)
    )


@pytest.mark.parametrize("changed", ["corpus", "splits", "origins"])
def test_an_artifact_of_other_data_is_refused(artifact: Artifact, data: Data, changed: str) -> None:
    corpus, splits, origins = data.corpus, data.splits, data.origins
    given = {"corpus": corpus, "splits": splits, "origins": origins}
    forecast(artifact, **given)
    given[changed] = {
        "corpus": replace(corpus, late_T=~corpus.late_T),
        "splits": splits.assign(split=splits["split"].replace("patient", "temporal")),
        "origins": origins.iloc[1:],
    }[changed]
    with pytest.raises(InputError, match=r"other readings, splits or origins.*training pipeline"):
        forecast(artifact, **given)


def test_scaler_is_of_training_rows(corpus: Corpus, splits: pd.DataFrame) -> None:
    rows = rows_of_split(corpus, splits, "train")
    glucose = corpus.values_TC[rows, 0][corpus.observed_TC[rows, 0]]
    assert fit_scaler(corpus, splits).mean["glucose_mg_dl"] == pytest.approx(glucose.mean())


def test_training_windows_lie_in_the_hours_around_midnight(data: Data) -> None:
    rows = data.rows_around_anchor(2)
    assert set(data.corpus.slot_of_day_T[rows]) == {*range(25), *range(264, 288)}


def test_a_baseline_holds_all_origins_unless_they_are_very_many(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    gatherer = data.gatherer(fit_scaler(data.corpus, data.splits), EVERYTHING)
    given = data, gatherer, data.rows_around_anchor(), data.trained_people(), 7
    rows = data.night_rows("train")
    newest = np.where(data.corpus.observed_TC[rows, 0], data.corpus.values_TC[rows, 0], np.nan)
    whole = history.gather_history(*given).nights
    np.testing.assert_array_equal(whole.glucose_NL[:, -1], newest)
    monkeypatch.setattr(history, "HELD", 9)
    some = history.gather_history(*given)
    assert some.target_NH.shape == (9, 96)
    assert np.isin(some.nights.glucose_NL[:, -1], newest).all()


@pytest.mark.parametrize("fit", [fit_model, fit_baseline])
def test_no_validation_night_is_an_error(
    fit: Any, corpus: Corpus, series: pd.DataFrame, task: Task
) -> None:
    options = SplitOptions(validation_patient_share=0, validation_temporal_share=0)
    splits = build_splits(series, options)
    data = Data(corpus, splits, build_origins(corpus, splits, task)[0], task)
    name = "ttm" if fit is fit_model else "last_value"
    with pytest.raises(InputError, match="no window is left for validation"):
        fit(name, {}, data, Training())
