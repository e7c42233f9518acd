"""Every saved score is found and pooled by person; what cannot be read is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError

from nocturnal_kedro.datasets import SavedScoresDataset
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.overview import COLUMNS

# Split, subject, points and squared error of each night.
NIGHTS = [
    ("validation", "a", 90, 100.0),
    ("validation", "a", 30, 900.0),
    ("validation", "b", 60, 400.0),
    ("patient", "c", 96, 2500.0),
]


def save(
    root: Path,
    experiment: str,
    name: str,
    version: str,
    changes: dict | None = None,
    **marks: object,
) -> Path:
    """Nights of a model as evaluation saves them, or of a sweep's cell."""
    file = root / experiment / f"{name}.parquet" / version / f"{name}.parquet"
    file.parent.mkdir(parents=True)
    nights = pd.DataFrame(NIGHTS, columns=["split", "subject", "points", "mse"]).assign(
        experiment=experiment, model=name.removesuffix("_night_scores"), data="d1", source="s",
        origin=pd.date_range("2026-01-05", periods=4), reference_mg_dl=140.0, bias_mg_dl=1.5,
        mae_mg_dl=[7.0, 11, 13, 17], crps_mg_dl=[5.0, 9, 8, 6],
    )  # fmt: skip
    nights = pd.concat([nights.assign(**marks | {"question": q, "cell": c}) for q, c in
                        changes["cells"]]) if changes else nights.assign(**marks)  # fmt: skip
    nights.to_parquet(file)
    return file


def load(root: Path, versions: str = "newest") -> pd.DataFrame:
    return SavedScoresDataset(path=str(root), versions=versions).load()


def test_nights_are_pooled_by_their_points(tmp_path: Path) -> None:
    save(tmp_path, "e", "ttm_night_scores", "v1", seed=7)
    people = load(tmp_path)
    assert list(people) == list(COLUMNS)
    row = people.set_index(["split", "subject"]).loc[("validation", "a")]
    assert row[["experiment", "model", "cell", "seed", "data", "version", "source"]].tolist() == [
        "e", "ttm", "", 7, "d1", "v1", "s"
    ]  # fmt: skip
    assert row[["nights", "points"]].tolist() == [2, 120]
    assert row["rmse_mg_dl"] == pytest.approx(np.sqrt((90 * 100 + 30 * 900) / 120))
    assert row["mae_mg_dl"] == pytest.approx((90 * 7 + 30 * 11) / 120)
    assert row["crps_mg_dl"] == pytest.approx((90 * 5 + 30 * 9) / 120)
    assert people["subject"].tolist() == ["c", "a", "b"]
    assert people["nights"].tolist() == [1, 2, 1]


def test_the_same_nights_are_known_by_their_readings(tmp_path: Path) -> None:
    save(tmp_path, "e", "a_night_scores", "v1")
    file = save(tmp_path, "e", "b_night_scores", "v1", mae_mg_dl=99.0)
    nights = pd.read_parquet(file)
    nights.iloc[::-1].to_parquet(file)
    scored_on = load(tmp_path).pivot(index="subject", columns="model", values="scored_on")
    assert scored_on["a"].tolist() == scored_on["b"].tolist()
    assert scored_on["a"].is_unique
    for column, more in (("points", 1), ("reference_mg_dl", 0.1), ("origin", pd.Timedelta("1h"))):
        other = nights.copy()
        other.loc[[0, 3], column] += more  # of a and c
        other.to_parquet(file)
        scored_on = load(tmp_path).pivot(index="subject", columns="model", values="scored_on")
        assert (scored_on["a"] == scored_on["b"]).to_dict() == {"a": False, "b": True, "c": False}


def test_a_cell_of_several_data_is_one(tmp_path: Path) -> None:
    cells = {"cells": [("days", "3"), ("days", "7")]}
    data = ["d1", "d1", "d2", "d1"]
    save(tmp_path, "personalization", "cell_scores", "v1", cells, model="ttm", data=data)
    people = load(tmp_path)
    assert set(people["data"]) == {"several"}
    assert people.groupby("cell")["subject"].apply("".join).tolist() == ["cab", "cab"]


def test_models_seeds_sweeps_and_versions_are_found(tmp_path: Path) -> None:
    save(tmp_path, "e", "ttm_night_scores", "2026-01-02", seed=1)
    save(tmp_path, "e", "ttm_night_scores", "2026-01-01", seed=1)
    save(tmp_path, "e", "ttm-2_night_scores", "2026-01-01", seed=2, model="ttm")
    save(tmp_path, "f", "ttm_night_scores", "2026-01-01")
    cells = {"cells": [("people", "10"), ("context", "10")]}
    save(tmp_path, "ablation", "cell_scores", "2026-01-03", cells, model="ttm",
         seed=[np.nan, 4, np.nan, np.nan])  # fmt: skip
    save(tmp_path, "ablation", "cell_scores", "2026-01-01", {"cells": [("people", "20")]})
    (tmp_path / "e" / "tide_night_scores.parquet" / "2026-01-03").mkdir(parents=True)  # cut off
    row = ["experiment", "cell", "seed", "version"]
    people = load(tmp_path)
    assert set(people["model"]) == {"ttm"}
    # Of seed 2 the newest run has nothing.
    assert people[row].drop_duplicates().sort_values(row).to_numpy().tolist() == [
        ["ablation", "context: 10", 0, "2026-01-03"],
        ["ablation", "context: 10", 4, "2026-01-03"],
        ["ablation", "people: 10", 0, "2026-01-03"],
        ["ablation", "people: 10", 4, "2026-01-03"],
        ["e", "", 1, "2026-01-02"],
        ["f", "", 0, "2026-01-01"],
    ]
    every = load(tmp_path, "all")
    assert len(every[row].drop_duplicates()) == 9
    assert set(every.loc[every["experiment"] == "e", "seed"]) == {1, 2}
    with pytest.raises(InputError, match="'newst'; it is one of newest, all"):
        load(tmp_path, "newst")


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    save(tmp_path, "e", "tide_night_scores", "v1")
    file = save(tmp_path, "e", "ttm_night_scores", "v1")
    whole = file.read_bytes()
    nights = pd.read_parquet(file)
    remedy = rf"experiment 'e' again from its evaluation on, and delete the folder {file.parent}\."
    for damaged in (b"", whole[:-100], whole[:40] + bytes(200) + whole[240:]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"{file} are damaged \(.*\)\. .*{remedy}") as told:
            load(tmp_path)
        assert isinstance(told.value.__cause__, InputError)
    for other, message in (
        (nights.drop(columns=["crps_mg_dl", "data"]), "lack data, crps_mg_dl: they were made by a"),
        (nights.assign(mse=[1.0, np.nan, 2, 3]), "hold no value of mse in some night"),
        (nights.iloc[:0], "hold no night"),
    ):
        other.to_parquet(file)
        with pytest.raises(DatasetError, match=rf"{file} {message}.*{remedy}"):
            load(tmp_path)
    sweep = save(tmp_path, "ablation", "cell_scores", "v1")
    nights.to_parquet(file)
    with pytest.raises(DatasetError, match=rf"{sweep} lack question, cell"):
        load(tmp_path)


def test_nothing_saved_says_what_to_run_and_nothing_is_written(tmp_path: Path) -> None:
    dataset = SavedScoresDataset(path=str(tmp_path / "07_model_output"))
    assert dataset.exists()
    with pytest.raises(
        DatasetError, match=r"no scores are saved in .*07_model_output\. Run an exp"
    ):
        dataset.load()
    with pytest.raises(DatasetError, match="never written"):
        dataset.save(pd.DataFrame())
