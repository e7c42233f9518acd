"""What has not changed is not made again; what has is, and nothing else."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError

from nocturnal_kedro.datasets import PreparedDataset
from nocturnal_kedro.pipelines.data_processing.nodes import prepare_parts
from nocturnal_kedro.series.grid import GridOptions
from nocturnal_kedro.series.preparation import Prepared
from nocturnal_kedro.sources import Part, find_parts, simulated
from tests.conftest import Run

HEADER = "EventDateTime,Basal,TotalBolusInsulinDelivered,CarbSize,CGM"


def write(root: Path, subject: int, glucose: int = 120) -> None:
    folder = root / "azt1d" / "CGM Records" / f"Subject {subject}"
    folder.mkdir(parents=True, exist_ok=True)
    times = pd.date_range("2024-01-01", periods=40, freq="5min")
    rows = [f"{time},1.0,,,{glucose + number % 3}" for number, time in enumerate(times)]
    (folder / f"Subject {subject}.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def parts(root: Path) -> list[Part]:
    return find_parts(["azt1d"], root, {})


def made(folder: Path, root: Path, grid: GridOptions | None = None) -> set[str]:
    """Save the parts of `root`, and say which were made by that."""
    before = {path.name for path in folder.iterdir()} if folder.exists() else set()
    PreparedDataset(filepath=str(folder)).save(prepare_parts(parts(root), grid or GridOptions()))
    return {path.name for path in folder.iterdir()} - before - {"current.json"}


def test_parts_are_made_once_and_a_changed_file_makes_its_part_alone(tmp_path: Path) -> None:
    root, folder = tmp_path / "raw", tmp_path / "prepared"
    write(root, 1)
    write(root, 2)
    assert len(made(folder, root)) == 2
    assert made(folder, root) == set()
    write(root, 2, glucose=130)
    assert len(made(folder, root)) == 1
    assert len(made(folder, root, GridOptions(glucose_lowest_mg_dl=20))) == 2
    write(root, 2)  # as it was at first: its part is still there
    assert made(folder, root) == set()
    loaded = PreparedDataset(filepath=str(folder)).load()
    assert loaded.series.groupby("subject", observed=True)["glucose_mg_dl"].max().tolist() == [
        122,
        122,
    ]


def test_a_moved_folder_is_not_made_again(tmp_path: Path) -> None:
    write(tmp_path / "one", 1)
    write(tmp_path / "two", 1)
    assert len(made(tmp_path / "prepared", tmp_path / "one")) == 1
    assert made(tmp_path / "prepared", tmp_path / "two") == set()


def test_a_folder_that_names_a_person_is_part_of_what_a_part_is(tmp_path: Path) -> None:
    """A person renamed is another person, though every byte is the same; so is a person's twin."""
    folder = tmp_path / "nightscout" / "alice"
    folder.mkdir(parents=True)
    entry = {"type": "sgv", "sgv": 120, "date": 1_700_000_000_000, "utcOffset": 60}
    (folder / "entries.json").write_text(json.dumps([entry]))
    dataset = PreparedDataset(filepath=str(tmp_path / "prepared"))

    def people() -> list[str]:
        dataset.save(prepare_parts(find_parts(["nightscout"], tmp_path, {}), GridOptions()))
        return sorted(dataset.load().series["subject"].unique())

    assert people() == ["alice"]
    folder = folder.rename(folder.with_name("anna"))
    assert people() == ["anna"]
    shutil.copytree(folder, folder.with_name("bob"))
    assert people() == ["anna", "bob"]


def test_a_person_in_two_parts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    again = tmp_path / "azt1d" / "CGM Records" / "Subject 2"
    shutil.copytree(again.with_name("Subject 1"), again)
    dataset = PreparedDataset(filepath=str(tmp_path / "prepared"))
    dataset.save(prepare_parts(parts(tmp_path), GridOptions()))
    with pytest.raises(DatasetError, match="source 'azt1d', subject '1' is in two parts"):
        dataset.load()


def test_options_and_stamp_tell_parts_without_files_apart() -> None:
    given = [simulated.Options(), simulated.Options(seed=3)]
    makers = [prepare_parts([Part("simulated", (), options)], GridOptions()) for options in given]
    later = Part("simulated", (), given[0], stamp="of 9:00")
    makers.append(prepare_parts([later], GridOptions()))
    assert len({digest for maker in makers for digest in maker}) == 3


def test_what_is_loaded_is_what_was_made(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 9)
    dataset = PreparedDataset(filepath=str(tmp_path / "prepared"))
    assert not dataset.exists()
    makers = prepare_parts(parts(tmp_path), GridOptions())
    dataset.save(makers)
    assert dataset.exists()
    loaded, direct = dataset.load(), [make() for make in makers.values()]
    assert loaded.series["subject"].unique().tolist() == ["10", "9"]  # sorted as text
    assert sorted(loaded.tally["rows"]) == sorted(r for p in direct for r in p.tally["rows"])
    assert sorted(loaded.marks["mark"]) == sorted(m for p in direct for m in p.marks["mark"])
    files = [name for part in loaded.made_from.values() for name in part["files"]]
    folder = "azt1d/CGM Records"
    assert files == [f"{folder}/Subject {n}/Subject {n}.csv" for n in (9, 10)]
    for part in loaded.made_from.values():  # as anybody's sha256sum tells it
        for name, digest in part["files"].items():
            [file] = tmp_path.rglob(Path(name).name)
            assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("file", ["series.parquet", "marks.parquet", "tally.csv", "made_from.json"])
def test_a_damaged_part_is_named_with_the_remedy(tmp_path: Path, file: str) -> None:
    write(tmp_path, 1)
    dataset = PreparedDataset(filepath=str(tmp_path / "prepared"))
    dataset.save(prepare_parts(parts(tmp_path), GridOptions()))
    next(tmp_path.rglob(file)).write_text("")
    with pytest.raises(DatasetError, match=r"prepared part .* is damaged.*Delete that folder"):
        dataset.load()


def _fail(message: str) -> Prepared:
    raise RuntimeError(message)


def test_a_part_that_fails_leaves_the_last_run_whole(tmp_path: Path) -> None:
    write(tmp_path, 1)
    dataset = PreparedDataset(filepath=str(tmp_path / "prepared"))
    dataset.save(prepare_parts(parts(tmp_path), GridOptions()))
    before = dataset.load().series
    with pytest.raises(DatasetError, match="no more"):
        dataset.save({"f" * 64: partial(_fail, "no more")})
    pd.testing.assert_frame_equal(dataset.load().series, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NA", "None", "null", "007", "1e3", "a b", "é/x"])
def test_any_name_is_a_persons_name(run: Run, tmp_path: Path, name: str) -> None:
    """Also through the tables: pandas would take some of them for a missing cell or a number."""
    times = pd.date_range("2024-01-01", periods=12 * 288, freq="5min")
    draw = np.random.default_rng(0)
    people = [
        pd.DataFrame(
            {"subject": subject, "time": times, "glucose": draw.uniform(80, 240, len(times))}
        )
        for subject in (name, "b", "c", "d")
    ]
    folder = tmp_path / "raw" / "tidy"
    folder.mkdir(parents=True)
    pd.concat(people).to_csv(folder / "mine.csv", index=False)
    context = run(
        tmp_path / "data", pipeline="data_processing", sources="tidy",
        raw_root=str(tmp_path / "raw"), cohort={"exclude": "tidy/d"},
    )  # fmt: skip
    for table in ("splits", "origins", "quality", "tally"):
        subjects = context.catalog.load(table)["subject"]
        assert {name, "b", "c"} <= set(subjects), table
    assert set(context.catalog.load("corpus").people["subject"]) == {name, "b", "c"}
    tally = context.catalog.load("tally")
    left_out = tally[tally["reason"].str.contains("left out by cohort.exclude")]
    assert left_out["subject"].tolist() == ["d"]
