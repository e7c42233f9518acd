"""Several processes learn what one does, and nothing is lost when any of them is."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from nocturnal_kedro.errors import StoppedError
from nocturnal_kedro.training.artifact import Artifact, load_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import Kept, fit_model
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.unfinished import Unfinished

# Of the rounding of a sum, Adam makes a share of the learning rate.
TINY = {"preset": "tiny", "learning_rate": 1e-3}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TRAINING = Training(epochs=2, steps_per_epoch=10, batch_size=16)


def state_of(
    name: str, data: Data, hardware: Hardware, training: Training = TRAINING, **more: object
) -> Artifact:
    return fit_model(name, TINY, data, training, hardware, **more)


def assert_close(first: Artifact, second: Artifact, most: float) -> None:
    assert first.state.keys() == second.state.keys()
    for name, weight in first.state.items():
        np.testing.assert_allclose(second.state[name], weight, rtol=0, atol=most, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ttm", "chronos2"])
def test_one_process_of_16_windows_learns_what_two_of_8_do(name: str, data: Data) -> None:
    alone = state_of(name, data, Hardware())
    together = state_of(name, data, Hardware(processes=2))
    assert_close(alone, together, 1e-6)
    np.testing.assert_allclose(
        together.log[["train_loss", "validation_loss", "validation_rmse"]],
        alone.log[["train_loss", "validation_loss", "validation_rmse"]],
        rtol=1e-5,
    )
    assert together.record["trained_parameters"] == alone.record["trained_parameters"]


@pytest.mark.slow
def test_a_step_in_parts_is_the_step_as_a_whole(data: Data) -> None:
    assert_close(
        state_of("ttm", data, Hardware()), state_of("ttm", data, Hardware(accumulate=4)), 1e-6
    )


def fit_elsewhere(data: Path, folder: Path, kills: int) -> dict:
    command = [sys.executable, "-m", "tests.training._cut_off", str(data), str(folder), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_twenty_kills_lose_nothing(data: Data, tmp_path: Path) -> None:
    data.write(tmp_path / "data")
    told = fit_elsewhere(tmp_path / "data", tmp_path / "killed", 20)
    assert told["killed"] == 20
    assert (np.diff(told["furthest"]) >= 0).all()
    assert told["furthest"][-1] >= 70
    fit_elsewhere(tmp_path / "data", tmp_path / "whole", 0)
    killed, whole = (load_artifact(tmp_path / name / "fitted") for name in ("killed", "whole"))
    assert_close(killed, whole, 0)
    columns = [name for name in whole.log if name != "seconds"]
    pd.testing.assert_frame_equal(killed.log[columns], whole.log[columns], check_exact=True)


KEPT = Hardware(checkpoint_steps=3)
TWO_KEPT = Hardware(processes=2, checkpoint_steps=3)


@contextmanager
def once_kept(folder: Path, deed: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as `folder` holds a checkpoint."""

    def wait() -> None:
        while not any(folder.glob("*/forecast/step-*")):
            time.sleep(0.01)
        deed()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def whole(data: Data) -> dict[int, Artifact]:
    """What an uninterrupted training learns, by the number of processes."""
    return {1: state_of("ttm", data, Hardware()), 2: state_of("ttm", data, Hardware(processes=2))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "number"),
    [(KEPT, signal.SIGTERM), (TWO_KEPT, signal.SIGUSR1)],
    ids=["one-TERM", "two-USR1"],
)
def test_a_signal_stops_in_order_and_the_same_command_goes_on(
    hardware: Hardware, number: int, data: Data, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with (
        once_kept(tmp_path, lambda: os.kill(os.getpid(), number)),
        pytest.raises(StoppedError, match=r"told to stop after step \d+ of at most 20: it is kept"),
    ):
        state_of("ttm", data, hardware, kept=Kept(Unfinished(tmp_path)))
    assert signal.getsignal(number) is before
    assert_close(
        state_of("ttm", data, hardware, kept=Kept(Unfinished(tmp_path))),
        whole[hardware.processes],
        0,
    )


@pytest.mark.slow
def test_a_lost_process_takes_nothing_with_it(
    data: Data, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    def kill_one() -> None:
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if "nocturnal_kedro.training.worker" in child.cmdline()
            and "torch.distributed.run" not in child.cmdline()
        ]
        assert len(workers) == 2
        workers[1].kill()

    with once_kept(tmp_path, kill_one):
        fitted = state_of("ttm", data, TWO_KEPT, kept=Kept(Unfinished(tmp_path)))
    assert_close(fitted, whole[2], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "precision"), [("zero2", "bf16"), ("zero3", "fp32")])
def test_deepspeed_learns_what_one_process_does(
    parallel: str, precision: str, data: Data, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    """Asked for a CPU, accelerate would quietly take plain DDP: the world says what it got."""
    pytest.importorskip("deepspeed")
    hardware = Hardware(processes=2, parallel=parallel, precision=precision, checkpoint_steps=5)
    fitted = state_of("ttm", data, hardware, kept=Kept(Unfinished(tmp_path)))
    if precision == "fp32":
        assert_close(fitted, whole[1], 1e-5)
        return
    half = state_of("ttm", data, Hardware(precision="bf16"))
    assert any((half.state[name] != weight).any() for name, weight in whole[1].state.items())
    # Gradients are summed in 16 bits.
    np.testing.assert_allclose(fitted.log["train_loss"], half.log["train_loss"], rtol=1e-3)
    assert_close(fitted, half, 5e-3)
