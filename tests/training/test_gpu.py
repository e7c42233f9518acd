"""What a GPU learns and forecasts is what the CPU does, but for rounding. Needs a GPU to run."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from nocturnal_kedro.errors import InputError, StoppedError
from nocturnal_kedro.training.artifact import Artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import Kept, fit_model
from nocturnal_kedro.training.forecast import forecast
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.unfinished import Unfinished
from tests.conftest import TRAINED, Run
from tests.training.test_processes import once_kept

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
TRAINING = Training(epochs=2, steps_per_epoch=10, batch_size=16)
GPU = Hardware(device="gpu")


def learnt(name: str, data: Data, hardware: Hardware, **more: object) -> Artifact:
    options = {"preset": "tiny", "learning_rate": 1e-3}
    return fit_model(name, options, data, TRAINING, hardware, **more)


@pytest.mark.parametrize("name", TRAINED)
def test_a_gpu_learns_what_the_cpu_does(name: str, data: Data) -> None:
    cpu, gpu = learnt(name, data, Hardware()), learnt(name, data, GPU)
    assert torch.cuda.get_device_name() in gpu.record["hardware"]["name"]
    # Some models draw dropout, and a GPU draws other numbers than the CPU.
    for column in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(gpu.log[column], cpu.log[column], rtol=0.05, err_msg=column)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_weights_forecast_alike_on_both(name: str, data: Data) -> None:
    fitted = learnt(name, data, GPU)
    given = fitted, data.corpus, data.splits, data.origins
    torch.manual_seed(0)
    cpu, _ = forecast(*given)
    torch.manual_seed(0)
    gpu, _ = forecast(*given, device="gpu")
    levels = cpu.filter(regex="mg_dl|^q").columns
    np.testing.assert_allclose(gpu[levels], cpu[levels], rtol=0, atol=0.5)


@pytest.mark.parametrize("name", TRAINED)
def test_half_the_bits_learn_nearly_the_same(name: str, data: Data) -> None:
    whole, half = (
        learnt(name, data, Hardware(device="gpu", precision=p)) for p in ("fp32", "bf16")
    )
    assert {weight.dtype.name for weight in half.state.values()} <= {"float32", "int64", "bool"}
    np.testing.assert_allclose(half.log["train_loss"], whole.log["train_loss"], rtol=0.1)


def test_fp16_compiled_and_parts_train(data: Data) -> None:
    plain = learnt("ttm", data, GPU).log["train_loss"]
    # In fp16 the first steps only find how far the loss may be scaled up, and teach nothing.
    for more, apart in (
        ({"precision": "fp16"}, 0.2),
        ({"compile": True}, 0.05),
        ({"accumulate": 4}, 0.01),
    ):
        other = learnt("ttm", data, Hardware(device="gpu", **more)).log["train_loss"]
        np.testing.assert_allclose(other, plain, rtol=apart, err_msg=str(more))


@pytest.mark.parametrize("name", ["ttm", "chronos_t5"])
def test_a_training_on_a_gpu_is_stopped_and_goes_on(name: str, data: Data, tmp_path: Path) -> None:
    hardware = Hardware(device="gpu", checkpoint_steps=3)
    whole = learnt(name, data, hardware)
    with (
        once_kept(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(StoppedError),
    ):
        learnt(name, data, hardware, kept=Kept(Unfinished(tmp_path)))
    on = learnt(name, data, hardware, kept=Kept(Unfinished(tmp_path)))
    np.testing.assert_allclose(on.log["train_loss"], whole.log["train_loss"], rtol=1e-3)
    for weight, expected in whole.state.items():
        np.testing.assert_allclose(on.state[weight], expected, rtol=0, atol=1e-3, err_msg=weight)


def test_more_processes_than_gpus_are_refused(data: Data) -> None:
    there = torch.cuda.device_count()
    with pytest.raises(InputError, match=rf"this machine has {there} GPUs, one for each"):
        learnt("ttm", data, Hardware(device="gpu", processes=there + 1))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "zero2", "zero3"])
def test_two_gpus_learn_what_one_does(parallel: str, data: Data) -> None:
    one = learnt("ttm", data, GPU)
    two = learnt("ttm", data, Hardware(device="gpu", processes=2, parallel=parallel))
    np.testing.assert_allclose(two.log["train_loss"], one.log["train_loss"], rtol=1e-3)


def test_the_environment_of_one_gpu_runs_everything(run: Run, tmp_path: Path) -> None:
    run(tmp_path, env="single_gpu", models="ttm")
    assert list(tmp_path.glob("08_reporting/nocturnal_point/report.html/*/report.html"))
