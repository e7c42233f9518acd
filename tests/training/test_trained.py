"""The same training is done once; whatever would make it another makes it another."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.variations import keep_days, read_every_15_minutes
from nocturnal_kedro.training import fit as fitting
from nocturnal_kedro.training import trained as keeping
from nocturnal_kedro.training.artifact import Artifact, load_artifact
from nocturnal_kedro.training.cells import vary
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import Kept, fit_baseline, fit_model
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.trained import Trained, key_of
from nocturnal_kedro.training.unfinished import Unfinished, only_one
from tests.sweeps.invented import TINY, TRAINING, invent_data

PACKAGE = Path(keeping.__file__).parents[1]


@pytest.fixture(scope="module")
def own() -> Data:
    return invent_data({"a": 4})


def kept_below(root: Path) -> Kept:
    return Kept(Unfinished(root / "unfinished"), Trained(root / "trained"))


def fit(data: Data, kept: Kept, training: Training = TRAINING, **given: Any) -> Artifact:
    hardware = given.pop("hardware", Hardware())
    return fit_model("ttm", TINY | given, data, training, hardware, kept)


@pytest.fixture(scope="module")
def root(own: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one training is kept."""
    root = tmp_path_factory.mktemp("kept")
    fit(own, kept_below(root))
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copied"))


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_is_found_and_not_trained_again(
    copied: Path, own: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of data that was read from disk; and nothing unfinished is left."""
    before = bytes_below(copied)
    assert not any((copied / "unfinished").iterdir())
    own.write(tmp_path / "data")
    with caplog.at_level(logging.INFO):
        found = fit(Data.read(tmp_path / "data", own.task), kept_below(copied))
    assert "was trained before with the same data, settings and code" in caplog.text
    assert bytes_below(copied) == before
    [folder] = (copied / "trained").iterdir()
    assert folder.name == found.record["key"]
    assert found.record["train_seconds"] == load_artifact(folder).record["train_seconds"]
    alone = fit(own, Kept())  # what nothing was kept of is the same model
    assert all(np.array_equal(found.state[name], alone.state[name]) for name in alone.state)
    assert alone.record["key"] == found.record["key"]


def changed_data(own: Data, what: str) -> Data:
    if what == "readings":
        return vary(own, corpus=read_every_15_minutes(own.corpus))
    if what == "splits":
        return vary(own, splits=keep_days(own.splits, 0.5))
    task = {"context": {"context_steps": 320}, "horizon": {"horizon_steps": 36}}[what]
    return vary(own, task=own.task.model_copy(update=task))


OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"training": TRAINING.with_seed(9)},
    "epochs": {"training": TRAINING.model_copy(update={"epochs": 2})},
    "anchor": {"training": TRAINING.model_copy(update={"anchor_hours": 1.5})},
    "rate": {"learning_rate": 2e-3},
    "covariates": {"covariates": ("iob_u",)},
    "size": {"network": {"d_model": 24}},
    "precision": {"hardware": Hardware(precision="bf16")},
    **{what: {"data": what} for what in ("readings", "splits", "context", "horizon")},
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_another_training_is_trained_anew(other: str, copied: Path, own: Data) -> None:
    given = dict(OTHERS[other])
    data = changed_data(own, given.pop("data")) if "data" in given else own
    [first] = (copied / "trained").iterdir()
    before = bytes_below(first)
    artifact = fit(data, kept_below(copied), **given)
    folders = {folder.name for folder in (copied / "trained").iterdir()}
    assert folders == {first.name, artifact.record["key"]}
    assert len(folders) == 2
    assert bytes_below(first) == before
    assert not any((copied / "unfinished").iterdir())


SAME = {"hardware": Hardware(checkpoint_steps=7)}, {"hardware": Hardware(accumulate=2)}


@pytest.mark.parametrize("given", SAME, ids=["checkpoints", "parts"])
def test_how_it_is_computed_makes_no_other(given: Any, copied: Path, own: Data) -> None:
    fit(own, kept_below(copied), **given)
    assert len(list((copied / "trained").iterdir())) == 1


def test_a_baseline_is_fitted_once_whatever_the_loop_is_told(own: Data, tmp_path: Path) -> None:
    kept = Trained(tmp_path)
    first = fit_baseline("climatology", {}, own, TRAINING, kept)
    longer = TRAINING.model_copy(update={"epochs": 5, "batch_size": 9})
    found = fit_baseline("climatology", {}, own, longer, kept)
    assert found.record == first.record
    for training, data in (
        (TRAINING.with_seed(9), own),
        (TRAINING.model_copy(update={"anchor_hours": 1.0}), own),
        (TRAINING, changed_data(own, "splits")),
    ):
        assert (
            fit_baseline("climatology", {}, data, training, kept).record["key"]
            not in (first.record["key"])
        )
    assert len(list(tmp_path.iterdir())) == 4


ALL = {"ttm", "chronos2", "climatology"}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the package, which keys are made of; code runs from where it is."""
    there = shutil.copytree(PACKAGE, tmp_path / "package")
    find = importlib.util.find_spec
    spec = SimpleNamespace(submodule_search_locations=[str(there)])
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: spec if name == "nocturnal_kedro" else find(name, *more),
    )
    return there


@pytest.mark.parametrize(
    ("file", "others"),
    [
        ("training/loop.py", ALL),
        ("series/windows.py", ALL),
        ("metrics/calibration.py", ALL),
        ("models/__init__.py", ALL),
        ("models/ttm.py", {"ttm"}),
        ("models/_chronos.py", {"ttm", "chronos2"}),
        ("baselines/climatology.py", {"climatology"}),
        ("metrics/point.py", set()),
        ("models/tide.py", set()),
        ("report/page.py", set()),
    ],
)
def test_other_code_makes_another_training(
    file: str, others: set[str], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> dict[str, str]:
        monkeypatch.setattr(keeping, "AT_START", keeping._hashes())  # of a run that begins now
        kinds = {"ttm": "model", "chronos2": "model", "climatology": "baseline"}
        return {name: key_of(kind, name, {"seed": 7}) for name, kind in kinds.items()}

    before = keys()
    assert keys() == before
    with (package / file).open("a") as code:
        code.write("# another line\n")
    after = keys()
    assert {name for name in before if after[name] != before[name]} == others


def test_what_was_made_by_code_that_is_edited_meanwhile_is_not_kept(
    package: Path, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(keeping, "AT_START", keeping._hashes())
    before = key_of("baseline", "last_value", {})
    trained = Trained(tmp_path)
    with (package / "training" / "loop.py").open("a") as code:
        code.write("# another line\n")
    assert key_of("baseline", "last_value", {}) == before  # the run is made by what it imported
    artifact = fit_baseline("last_value", {}, data, Training(), trained)
    assert trained.find(artifact.record["key"]) is None
    assert "the project's code was changed since this run began" in caplog.text


@pytest.mark.parametrize(("library", "other"), [("torch", True), ("numpy", True), ("kedro", False)])
def test_another_library_makes_another_training(
    library: str, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of("model", "ttm", {})
    installed = keeping.versions() | {library: "0.0.1"}
    monkeypatch.setattr(keeping, "versions", lambda: installed)
    assert (key_of("model", "ttm", {}) != before) == other


def test_the_kind_and_the_name_are_of_the_key() -> None:
    named = (("model", "ttm"), ("model", "tide"), ("baseline", "last_value"))
    assert len({key_of(kind, name, {}) for kind, name in named}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("file", ["weights.safetensors", "SHA256SUMS"])
def test_what_is_damaged_is_told_and_trained_anew_when_it_is_deleted(
    file: str, copied: Path, own: Data
) -> None:
    [folder] = (copied / "trained").iterdir()
    whole = load_artifact(folder)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    told = (
        rf"a model that was trained before is damaged: .*{folder.name}.*{file}.*"
        r"Or delete the folder: it is then trained anew\."
    )
    with pytest.raises(InputError, match=told):
        fit(own, kept_below(copied))
    shutil.rmtree(folder)
    again = fit(own, kept_below(copied))
    assert all(np.array_equal(again.state[name], whole.state[name]) for name in whole.state)
    assert load_artifact(folder).record["key"] == folder.name


def test_where_another_was_faster_its_artifact_stands(copied: Path) -> None:
    kept = Trained(copied / "trained")
    [folder] = kept.root.iterdir()
    before = bytes_below(folder)
    slower = load_artifact(folder)
    slower.record["train_seconds"] = 12345.0
    kept.keep(folder.name, slower)
    assert bytes_below(folder) == before
    assert list(kept.root.iterdir()) == [folder]
    (folder / "artifact.json").write_text("{}")
    with pytest.raises(InputError, match=r"artifact\.json' is damaged"):
        kept.keep(folder.name, slower)


def test_threads_that_keep_the_same_at_once_leave_one_whole(root: Path, tmp_path: Path) -> None:
    [folder] = (root / "trained").iterdir()
    artifact, kept = load_artifact(folder), Trained(tmp_path)
    together = threading.Barrier(4)

    def keep(_: int) -> None:
        together.wait()
        kept.keep("same", artifact)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, range(4)))  # raises what any of them raised
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    weights = "weights.safetensors"
    assert bytes_below(tmp_path / "same")[weights] == bytes_below(folder)[weights]
    load_artifact(tmp_path / "same")


def test_nobody_else_trains_the_same_until_it_is_kept(
    own: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last step and the artifact another run would learn it all again."""
    kept, seen = kept_below(tmp_path), []
    real = fitting.fit_spread

    def look(*arguments: Any) -> Any:
        [folder] = (tmp_path / "unfinished").iterdir()
        with (
            pytest.raises(InputError, match="another run is training the same model"),
            only_one(folder),
        ):
            pass
        seen.append(folder)
        return real(*arguments)

    monkeypatch.setattr(fitting, "fit_spread", look)
    fit(own, kept)
    assert len(seen) == 1
    assert not seen[0].exists()


def test_who_waited_for_the_lock_finds_what_was_kept(
    copied: Path, own: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked before the other one was done."""
    kept, looked = kept_below(copied), []
    real = Trained.find

    def find(self: Trained, key: str) -> Artifact | None:
        looked.append(key)
        return None if len(looked) == 1 else real(self, key)

    monkeypatch.setattr(Trained, "find", find)
    before = bytes_below(copied / "trained")
    fit(own, kept)
    assert len(looked) == 2
    assert bytes_below(copied / "trained") == before
    assert not any((copied / "unfinished").iterdir())


AT_ONCE = """
import sys, time
from pathlib import Path
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from tests.sweeps.invented import TASK, TINY, TRAINING
from tests.training.test_trained import kept_below
root, name = Path(sys.argv[1]), sys.argv[2]
data = Data.read(root / "data", TASK)
training = TRAINING.model_copy(update={"steps_per_epoch": 20})
(root / name).touch()
while not all((root / other).exists() for other in ("first", "second")):
    time.sleep(0.005)
try:
    print("key", fit_model("ttm", TINY, data, training, None, kept_below(root)).record["key"])
except InputError as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_two_processes_that_train_the_same_at_once(own: Data, tmp_path: Path) -> None:
    own.write(tmp_path / "data")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(tmp_path), name],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name in ("first", "second")
    ]  # fmt: skip
    # Libraries write their own lines before it.
    told = [process.communicate(timeout=300)[0].splitlines()[-1] for process in started]
    assert all(process.returncode == 0 for process in started)
    keys = {line.split()[1] for line in told if line.startswith("key")}
    assert len(keys) == 1
    for line in told:
        assert line.startswith(("key", "refused another run is training the same model"))
    [folder] = (tmp_path / "trained").iterdir()
    assert folder.name in keys
    load_artifact(folder)
    assert not any((tmp_path / "unfinished").iterdir())
    training = TRAINING.model_copy(update={"steps_per_epoch": 20})
    before = bytes_below(folder)
    pd.testing.assert_frame_equal(
        fit(own, kept_below(tmp_path), training).log, load_artifact(folder).log
    )
    assert bytes_below(folder) == before
