from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Artifact
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, build_origins, data_fingerprint, rows_of_split
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.series.windows import fit_scaler
from nocturnal_kedro.training.fit import (
    fit_baseline,
    fit_model,
    forecast,
    near_anchor,
    trained_people,
)
from nocturnal_kedro.training.options import Training

TINY = {"d_model": 16, "decoder_d_model": 16}


@pytest.fixture(scope="module")
def origins(corpus: Corpus, splits: pd.DataFrame, task: Task) -> pd.DataFrame:
    return build_origins(corpus, splits, task)[0]


@pytest.fixture(scope="module")
def artifact(corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, task: Task) -> Artifact:
    training = Training(epochs=2, steps_per_epoch=10)
    return fit_model("ttm", TINY, corpus, splits, origins, task, training)


def test_fitting_records_what_it_was_fitted_to(
    artifact: Artifact, corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame
) -> None:
    assert artifact.record["data"] == data_fingerprint(corpus, splits, origins)
    assert artifact.options["d_model"] == 16
    held_out = splits.loc[splits["split"] == "patient", "subject"]
    assert not {f"invented/{subject}" for subject in held_out} & set(artifact.people)
    assert artifact.people == trained_people(splits)


def test_forecasts_hold_every_origin_and_step_and_true_targets(
    artifact: Artifact, corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame,
    series: pd.DataFrame,
) -> None:  # fmt: skip
    nights = origins[origins["split"] != "train"]
    frame, seconds = forecast(artifact, corpus, splits, origins)
    assert seconds > 0
    assert list(frame.columns) == [
        "source", "subject", "origin", "step", "target_mg_dl", "forecast_mg_dl"
    ]  # fmt: skip
    assert len(frame) == 96 * len(nights)
    frame["time"] = frame["origin"] + pd.to_timedelta(5 * frame["step"], unit="min")
    truth = frame.merge(series, on=["source", "subject", "time"], how="left")
    # To float32, in which whole numbers of mg/dL are exact.
    np.testing.assert_array_equal(
        truth["target_mg_dl"], truth["glucose_mg_dl"].astype(np.float32).astype(float)
    )


def test_quantile_models_add_their_columns(
    corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, task: Task
) -> None:
    options = {"d_model": 16, "heads": 2, "d_ff": 16, "layers": 1}
    training = Training(epochs=1, steps_per_epoch=3)
    fitted = fit_model("chronos2", options, corpus, splits, origins, task, training)
    frame, _ = forecast(fitted, corpus, splits, origins)
    assert list(frame.columns[-21:]) == [
        f"q{level:g}" for level in (0.01, *np.arange(1, 20) / 20, 0.99)
    ]
    np.testing.assert_array_equal(frame["forecast_mg_dl"], frame["q0.5"])
    assert (frame.iloc[:, -21:].diff(axis=1).iloc[:, 1:] >= 0).all().all()


def test_last_value_is_the_last_reading(
    corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, task: Task, series: pd.DataFrame
) -> None:
    fitted = fit_baseline("last_value", {}, corpus, splits, origins, task)
    frame, _ = forecast(fitted, corpus, splits, origins)
    at_origin = series.rename(columns={"time": "origin"})[["subject", "origin", "glucose_mg_dl"]]
    joined = frame.merge(at_origin, on=["subject", "origin"])
    np.testing.assert_array_equal(
        joined["forecast_mg_dl"], joined["glucose_mg_dl"].astype(np.float32).astype(float)
    )


@pytest.mark.parametrize("changed", ["corpus", "splits", "origins"])
def test_an_artifact_of_other_data_is_refused(
    artifact: Artifact, corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, changed: str
) -> None:
    data = {"corpus": corpus, "splits": splits, "origins": origins}
    forecast(artifact, **data)
    data[changed] = {
        "corpus": replace(corpus, late_T=~corpus.late_T),
        "splits": splits.assign(split=splits["split"].replace("patient", "temporal")),
        "origins": origins.iloc[1:],
    }[changed]
    with pytest.raises(InputError, match=r"other readings, splits or origins.*training pipeline"):
        forecast(artifact, **data)


def test_scaler_is_of_training_rows(corpus: Corpus, splits: pd.DataFrame) -> None:
    rows = rows_of_split(corpus, splits, "train")
    glucose = corpus.values_TC[rows, 0][corpus.observed_TC[rows, 0]]
    assert fit_scaler(corpus, splits).mean[0] == pytest.approx(glucose.mean(), rel=1e-5)


def test_near_anchor_keeps_the_hours_around_midnight(corpus: Corpus) -> None:
    rows = near_anchor(corpus, np.arange(288 * 3), Training(anchor_hours=2))
    assert set(corpus.slot_of_day_T[rows]) == {*range(25), *range(264, 288)}


def test_no_validation_night_is_an_error(corpus: Corpus, series: pd.DataFrame, task: Task) -> None:
    options = SplitOptions(validation_patient_share=0, validation_temporal_share=0)
    splits = build_splits(series, options)
    origins = build_origins(corpus, splits, task)[0]
    with pytest.raises(InputError, match="no window is left for validation"):
        fit_model("ttm", TINY, corpus, splits, origins, task, Training())
