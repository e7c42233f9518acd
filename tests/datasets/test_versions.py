"""Every model is listed with the version of the data that it was built from."""

import json
from pathlib import Path

import pandas as pd

from nocturnal_kedro.datasets import DataVersionsDataset

CORPUS, AUDIT, MODELS = "05_model_input/corpus", "05_model_input/audit.csv", "06_models"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def make_version(root: Path, version: str, fingerprint: str, **data: str) -> None:
    """A corpus of two people, and its audits: `shared`, and those of experiments."""
    folder = root / CORPUS / version / "corpus"
    parts = {"a": {"source": "tidy", "files": ["1.csv", "2.csv", "3.csv"]}}
    made_from = {"fingerprint": fingerprint, "made_from": {"parts": parts}}
    write(folder / "made_from.json", json.dumps(made_from))
    write(folder / "people.csv", "source,subject\ntidy,anna\ntidy,ben\n")
    for name, found in data.items():
        place = root / (AUDIT if name == "shared" else f"05_model_input/{name}/audit.csv")
        write(place / version / "audit.csv", f"check,data\nfirst,{found}\n")


def make_model(root: Path, experiment: str, name: str, version: str, data: str) -> None:
    file = root / MODELS / experiment / name / version / name / "artifact.json"
    write(file, json.dumps({"record": {"data": data}}))


def versions_in(root: Path) -> pd.DataFrame:
    dataset = DataVersionsDataset(corpus=CORPUS, audit=AUDIT, models=MODELS, path=str(root))
    return dataset.load().set_index("version")


def test_a_model_of_an_experiment_with_its_own_task_is_listed_with_its_data(
    tmp_path: Path,
) -> None:
    make_version(tmp_path, "v1", "c1", shared="d1")
    make_version(tmp_path, "v2", "c2", shared="d2", prandial="m2", naps="n2")
    make_version(tmp_path, "v3", "c2", prandial="m3")
    make_version(tmp_path, "v4", "c4")  # no audit passed
    for data in ("d1", "d2"):
        make_model(tmp_path, "nocturnal_point", "ttm", f"of-{data}", data)
    for data in ("m2", "m3", "n2", "d9"):
        make_model(tmp_path, "prandial", "ttm", f"of-{data}", data)
    table = versions_in(tmp_path)
    assert table["data"].to_dict() == {"v1": "d1", "v2": "d2 n2 m2", "v3": "m3", "v4": ""}
    assert table["models"].to_dict() == {
        "v1": "nocturnal_point/ttm/of-d1",
        "v2": "nocturnal_point/ttm/of-d2 prandial/ttm/of-m2 prandial/ttm/of-n2",
        "v3": "prandial/ttm/of-m3",
        "v4": "",
    }
    assert table["same_as"].tolist() == ["v1", "v2", "v2", "v4"]
    assert table["people"].tolist() == [2, 2, 2, 2]
    assert table["files"].tolist() == [3, 3, 3, 3]
