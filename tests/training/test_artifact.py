"""An artifact from somebody else: hashes are no proof of who wrote it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.training.artifact import SUMS, Artifact, load_artifact, save_artifact, sha256
from tests.conftest import SCALER

ARTIFACT = Artifact(
    name="ttm",
    kind="model",
    options={},
    architecture={},
    base=None,
    scaler=SCALER,
    people=("invented/p0",),
    state={"weight": np.array([[1.5, -2.0]], np.float32)},
    spread=Spread.none(3),
    record={},
    log=pd.DataFrame(),
)


def hash_again(folder: Path) -> None:
    """As whoever wrote the files would have done."""
    files = [file for file in sorted(folder.iterdir()) if file.name != SUMS]
    (folder / SUMS).write_text("".join(f"{sha256(file)}  {file.name}\n" for file in files))


def with_header(folder: Path, **told: object) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | told})
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (folder / "weights.safetensors").write_bytes(content)


def ten_gigabytes(folder: Path) -> None:
    with_header(folder, shape=[2_500_000_000], data_offsets=[0, 10_000_000_000])


def backwards(folder: Path) -> None:
    with_header(folder, data_offsets=[4, 0])


def unknown_numbers(folder: Path) -> None:
    with_header(folder, dtype="F31")


def endless_header(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def scaler_of_nan(folder: Path) -> None:
    told = json.loads((folder / "artifact.json").read_text())
    told["scaler"]["std"]["glucose_mg_dl"] = float("nan")
    (folder / "artifact.json").write_text(json.dumps(told))


def scaler_of_nothing(folder: Path) -> None:
    told = json.loads((folder / "artifact.json").read_text())
    told["scaler"]["std"] = []
    (folder / "artifact.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (ten_gigabytes, "declare tensors that are not there"),
        (backwards, "declare tensors"),
        (unknown_numbers, "declare tensors"),
        (endless_header, "declare tensors"),
        (scaler_of_nan, r"artifact\.json': 'scaler' holds NaN"),
        (scaler_of_nothing, "another version"),
    ],
)
def test_files_that_declare_what_is_not_there_are_refused(
    attack: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    save_artifact(ARTIFACT, tmp_path / "m")
    attack(tmp_path / "m")
    hash_again(tmp_path / "m")
    with pytest.raises(InputError, match=told):
        load_artifact(tmp_path / "m")


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    none = {"first": np.ones(2, np.float32), "second": np.array([1, np.nan], np.float32)}
    save_artifact(replace(ARTIFACT, state=none), tmp_path / "m")
    with pytest.raises(InputError, match=r"weights\.safetensors': 'second' holds NaN"):
        load_artifact(tmp_path / "m")
    # A baseline may have seen nobody at some hour.
    save_artifact(replace(ARTIFACT, kind="baseline", state=none), tmp_path / "b")
    assert np.isnan(load_artifact(tmp_path / "b").state["second"][1])
    offsets = Spread.none(3)._replace(log_offset_HQ=np.full((3, 3), np.nan))
    save_artifact(replace(ARTIFACT, spread=offsets), tmp_path / "s")
    with pytest.raises(InputError, match="'log_offset_HQ' holds NaN"):
        load_artifact(tmp_path / "s")


@pytest.mark.parametrize("name", ["../secret", "{outside}", "sub/../../secret", "..", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("not theirs")
    save_artifact(ARTIFACT, tmp_path / "m")
    (tmp_path / "m" / "sub").mkdir()
    name = name.format(outside=outside)
    with (tmp_path / "m" / SUMS).open("a") as sums:
        sums.write(f"{sha256(outside)}  {name}\n")
    with pytest.raises(InputError, match="outside that folder"):
        load_artifact(tmp_path / "m")


def test_what_was_saved_still_loads(tmp_path: Path) -> None:
    save_artifact(ARTIFACT, tmp_path / "m")
    before = (tmp_path / "m" / SUMS).read_bytes()
    hash_again(tmp_path / "m")
    assert (tmp_path / "m" / SUMS).read_bytes() == before
    loaded = load_artifact(Path(os.path.relpath(tmp_path / "m")))
    np.testing.assert_array_equal(loaded.state["weight"], ARTIFACT.state["weight"])
