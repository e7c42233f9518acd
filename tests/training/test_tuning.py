"""A search finds what validation prefers, sees nothing else, and loses nothing when killed."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

from nocturnal_kedro.errors import InputError, StoppedError, validated
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.space import Range, Tuning, space_of, values_now, with_values
from nocturnal_kedro.training.tuning import STORE, Found, search
from nocturnal_kedro.training.unfinished import Unfinished
from tests.conftest import TRAINED

TINY = {"preset": "tiny"}
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
TRAINING = Training(epochs=2, steps_per_epoch=4, batch_size=16)
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "network": {"d_model": [8, 16]},
}


def find(
    data: Data,
    folder: Path,
    trials: int,
    space: dict[str, Any] = SPACE,
    training: Training = TRAINING,
    hardware: Hardware | None = None,
    model: str = "ttm",
    given: dict[str, Any] = TINY,
    **tuning: int,
) -> Found:
    told = Tuning.model_validate({"space": space, **tuning})
    kept = Unfinished(folder)
    return search(model, given, data, training, hardware or Hardware(), told, trials, kept)


def results(found: Found) -> pd.DataFrame:
    return found.trials.drop(columns="seconds")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked process has none of the threads that its parent's torch would wait for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_winner_is_the_trial_that_validation_prefers(data: Data, tmp_path: Path) -> None:
    found = find(data, tmp_path, 4)
    table = found.trials
    assert list(table) == [
        "trial", "state", "validation_rmse", "epochs", "seconds", "failure",
        "learning_rate", "network.d_model",
    ]  # fmt: skip
    assert table["trial"].tolist() == [1, 2, 3, 4]
    assert (table["seconds"] > 0).all()
    best = table.loc[table["validation_rmse"].idxmin()]
    assert found.parameters == {
        "model_options": {
            "ttm": {
                "preset": "tiny",
                "learning_rate": best["learning_rate"],
                "network": {"d_model": best["network.d_model"]},
            }
        }
    }
    # The first is the options as they are: no search ends with worse ones.
    now = values_now("ttm", TINY, TRAINING)
    assert all(table[name][0] == now[name] for name in ("learning_rate", "network.d_model"))
    assert table["learning_rate"].nunique() == 4


@pytest.mark.slow
def test_a_trial_scores_as_a_training_with_its_options_does(data: Data, tmp_path: Path) -> None:
    found = find(data, tmp_path, 2)
    fitted = fit_model("ttm", found.parameters["model_options"]["ttm"], data, TRAINING)
    assert fitted.log["validation_rmse"].min() == found.trials["validation_rmse"].min()


@pytest.mark.slow
def test_nothing_that_is_tested_on_has_a_say(data: Data, tmp_path: Path) -> None:
    tested = data.origins[data.origins["split"].isin(TEST_SPLITS)]
    assert len(tested)
    values_TC = data.corpus.values_TC.copy()
    for split in TEST_SPLITS:
        for row in data.night_rows(split):
            values_TC[row + 1 : row + 1 + data.task.horizon_steps, 0] += 100.0
    other = replace(data, corpus=replace(data.corpus, values_TC=values_TC))
    assert other.fingerprint() != data.fingerprint()
    first, second = find(data, tmp_path / "a", 3), find(other, tmp_path / "b", 3)
    pd.testing.assert_frame_equal(results(first), results(second), check_exact=True)


@pytest.mark.slow
def test_the_same_seed_finds_the_same_and_another_tries_other_values(
    data: Data, tmp_path: Path
) -> None:
    first = find(data, tmp_path / "a", 3)
    pd.testing.assert_frame_equal(results(first), results(find(data, tmp_path / "b", 3)))
    other = find(data, tmp_path / "c", 3, training=TRAINING.model_copy(update={"seed": 8}))
    assert set(other.trials["learning_rate"][1:]).isdisjoint(first.trials["learning_rate"][1:])


@pytest.mark.slow
def test_more_trials_go_on_from_those_there_are(data: Data, tmp_path: Path) -> None:
    few = find(data, tmp_path, 2)
    more = find(data, tmp_path, 3)
    pd.testing.assert_frame_equal(more.trials[:2], few.trials)  # not trained again, by the seconds
    again = find(data, tmp_path, 1)
    pd.testing.assert_frame_equal(again.trials, more.trials)
    whole = find(data, tmp_path / "whole", 3)
    pd.testing.assert_frame_equal(results(more), results(whole))
    assert len(list(tmp_path.glob("*/training.json"))) == 1
    find(data, tmp_path, 1, training=TRAINING.model_copy(update={"epochs": 3}))
    assert len(list(tmp_path.glob("*/training.json"))) == 2  # another search


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_finds_what_a_whole_one_does(
    data: Data, one_thread: None, tmp_path: Path
) -> None:
    hardware = Hardware(checkpoint_steps=2)
    training = Training(epochs=3, steps_per_epoch=8, batch_size=16)
    whole = find(data, tmp_path / "whole", 4, training=training)
    chance = np.random.default_rng(7)
    killed = 0
    while killed < 8:
        before = written(tmp_path / "killed")
        child = fork(find, data, tmp_path / "killed", 4, training=training, hardware=hardware)
        while written(tmp_path / "killed") == before and not os.waitid(os.P_PID, child, ENDED):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        killed += 1
    assert killed > 3
    found = find(data, tmp_path / "killed", 4, training=training)
    pd.testing.assert_frame_equal(results(found), results(whole), check_exact=True)
    assert found.parameters == whole.parameters


def fork(deed: Callable[..., object], *given: object, **named: object) -> int:
    """A process of its own that does it; its exit code tells whether it was stopped in order.

    The lock of a progress bar is one for all forks: the one of a killed process would be held on.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            tqdm.set_lock(threading.RLock())
            deed(*given, **named)
            code = 0
        except StoppedError as stopped:
            code = 75 if "the same command goes on from there" in str(stopped) else 2
        finally:
            os._exit(code)
    return child


def written(folder: Path) -> int:
    return sum(store.stat().st_size for store in folder.glob(f"*/{STORE}"))


@pytest.mark.parametrize("damage", ["half a line", "a lock"])
def test_what_a_killed_process_left_is_mended(data: Data, damage: str, tmp_path: Path) -> None:
    before = find(data, tmp_path, 1)
    [store] = tmp_path.glob(f"*/{STORE}")
    if damage == "a lock":
        store.with_name(f"{STORE}.lock").symlink_to(store)
    else:
        with store.open("a") as file:
            file.write('{"op_code": 4, "worker_')
    started = time.monotonic()
    after = find(data, tmp_path, 2)
    assert time.monotonic() - started < 20  # the lock alone would be waited for for 30 s
    pd.testing.assert_frame_equal(after.trials[:1], before.trials)


def test_a_store_that_cannot_be_read_is_named(data: Data, tmp_path: Path) -> None:
    find(data, tmp_path, 1)
    [store] = tmp_path.glob(f"*/{STORE}")
    store.write_text("no\njournal\n")
    with pytest.raises(InputError, match=rf"{STORE}' cannot be read.*Delete it"):
        find(data, tmp_path, 1)


@pytest.mark.slow
def test_a_signal_stops_in_order_and_the_same_command_goes_on(
    data: Data, one_thread: None, tmp_path: Path
) -> None:
    training = Training(epochs=2, steps_per_epoch=40, batch_size=16)
    hardware = Hardware(checkpoint_steps=5)
    child = fork(find, data, tmp_path, 2, training=training, hardware=hardware)
    while not list(tmp_path.glob("*/trial-*/forecast/*")):
        assert not os.waitid(os.P_PID, child, ENDED)
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    assert len(list(tmp_path.glob("*/trial-*/forecast/step-*"))) == 1
    found = find(data, tmp_path, 2, training=training, hardware=hardware)
    assert found.trials["state"].tolist() == ["complete", "complete"]
    assert not list(tmp_path.glob("*/trial-*"))


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_ended_early_and_leaves_nothing(
    data: Data, tmp_path: Path
) -> None:
    """From trial to trial the rates are good or far too small to learn by."""
    training = Training(epochs=4, steps_per_epoch=4, batch_size=16)
    found = find(
        data, tmp_path, 6, training=training, prune_after=2, prune_from_epoch=1,
        space={"learning_rate": [3e-3, 1e-3, 1e-7]},
    )  # fmt: skip
    by_state = dict(list(found.trials.groupby("state")))
    pruned, complete = by_state["pruned"], by_state["complete"]
    assert (pruned["epochs"] < 4).all()
    assert pruned["validation_rmse"].min() > complete["validation_rmse"].min()
    assert found.parameters["model_options"]["ttm"]["learning_rate"] != 1e-7
    [folder] = tmp_path.iterdir()
    assert {file.name for file in folder.iterdir()} == {STORE, "lock", "training.json"}


@pytest.mark.slow
def test_a_trial_that_diverges_is_one_of_the_trials(data: Data, tmp_path: Path) -> None:
    found = find(data, tmp_path, 3, space={"learning_rate": [1e-3, 1e30]})
    failed = found.trials[found.trials["state"] == "failed"]
    assert len(failed)
    assert set(failed["learning_rate"]) == {1e30}
    assert failed["failure"].str.contains("the loss is").all()
    assert found.parameters["model_options"]["ttm"]["learning_rate"] == 1e-3
    with pytest.raises(InputError, match=r"each of 2 trials failed.*the loss is.*Give other"):
        find(data, tmp_path, 2, space={"learning_rate": [1e30, 1e29]})


@pytest.mark.slow
def test_how_the_training_samples_can_be_searched_too(data: Data, tmp_path: Path) -> None:
    found = find(data, tmp_path, 2, space={"training": {"batch_size": [8, 16]}})
    assert set(found.trials["training.batch_size"]) <= {8, 16}
    assert found.parameters["training"]["batch_size"] in {8, 16}
    assert found.parameters["model_options"] == {"ttm": TINY}


def test_two_searches_do_not_share_a_store(data: Data, tmp_path: Path) -> None:
    find(data, tmp_path, 1)
    with next(tmp_path.glob("*/lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is training the same model"):
            find(data, tmp_path, 1)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("preset", ["tiny", "small", "released"])
def test_every_model_has_a_space_around_its_options(name: str, preset: str) -> None:
    given = {"preset": preset}
    space = space_of(name, given, TRAINING, Tuning())
    now = values_now(name, given, TRAINING)
    rate = space["learning_rate"]
    assert isinstance(rate, Range)
    assert (rate.low * 10, rate.high / 10) == pytest.approx((now["learning_rate"],) * 2)
    assert len(space) >= 3
    for known, tried in space.items():
        assert tried.holds(now[known]) if isinstance(tried, Range) else now[known] in tried


def test_the_space_of_a_start_from_weights_leaves_their_size_alone(tmp_path: Path) -> None:
    given = {"strategy": "fine_tune", "weights": str(tmp_path)}
    assert set(space_of("ttm", given, TRAINING, Tuning())) == {"learning_rate"}
    adapted = given | {"lora": {"rank": 4}}
    space = space_of("ttm", adapted, TRAINING, Tuning())
    assert set(space) == {"learning_rate", "lora.rank"}
    assert space["lora.rank"] == (2, 4, 8)
    parameters, options, _ = with_values("ttm", adapted, TRAINING, {"lora.rank": 8})
    assert options.lora.rank == 8
    assert parameters["model_options"]["ttm"] == given | {"lora": {"rank": 8}}
    assert adapted["lora"]["rank"] == 4  # nothing given is changed


def test_a_space_is_the_same_from_a_file_and_from_the_command_line() -> None:
    from_file = Tuning.model_validate({"space": SPACE})
    assert set(from_file.space) == {"learning_rate", "network.d_model"}
    words = {**SPACE, "network": {"d_model": "8 16"}}
    assert Tuning.model_validate({"space": words}) == from_file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": {"network": {"d_modl": [8]}}}, r"'network.d_modl'; known.*'network.d_model'\?"),
        ({"space": {"seed": [1, 2]}}, r"unknown name in tuning.space 'seed'"),
        ({"space": {"training": {"seed": [1, 2]}}}, r"unknown name.*'training.seed'"),
        ({"space": {"network": {"d_model": [8, 4]}}}, r"network.d_model=4: options of model 'ttm'"),
        ({"space": {"training": {"batch_size": [0, 8]}}}, r"batch_size=0: parameter 'training'"),
        ({"model": "timegpt", "given": {}}, "'timegpt' is a service.*nothing to search"),
        (
            {"given": {"strategy": "zero_shot", "weights": "w"}},
            "zero_shot trains nothing, and there is nothing to search",
        ),
        ({"trials": 0}, "'trials' is 0; it is a whole number from 1"),
        ({"trials": "many"}, "'trials' is 'many'"),
        ({"hardware": Hardware(processes=2)}, "1 x 2 processes, and each trial is trained by one"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_error(
    changed: dict[str, Any], message: str, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        find(data, tmp_path, **{"trials": 1} | changed)
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": {"low": 1, "high": 0.1}}, "low 1 must be below high 0.1"),
        ({"learning_rate": {"low": 0, "high": 0.1, "log": True}}, "low 0 must be above 0 with log"),
        ({"learning_rate": []}, "at least 1"),
        ({"learning_rate": {"lo": 1, "high": 2}}, "learning_rate.lo"),
    ],
)
def test_a_space_that_is_none_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validated(Tuning, {"space": space}, "parameter 'tuning'")


def test_without_optuna_the_error_says_how_to_install_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nocturnal_kedro.training.space.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs optuna.*pip install 'nocturnal-kedro\[tuning\]'"):
        find(data, tmp_path, 1)
