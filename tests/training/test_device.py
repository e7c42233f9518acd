"""What the hardware is asked for, it is, or there is an error."""

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.device import require_device, settle, start_accelerator
from nocturnal_kedro.training.options import Hardware, SettledHardware, Training

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@without_gpu
def test_an_absent_gpu_is_an_error_not_a_cpu_run() -> None:
    with pytest.raises(InputError, match=r"hardware\.device is 'gpu' and torch sees none"):
        require_device("gpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parallel": "fsdp"}, "fsdp shards over GPUs"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"processes": "auto"}, "auto counts GPUs"),
        ({"processes": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_combinations_are_refused_before_a_run(given: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Hardware(**given)


@pytest.mark.parametrize(
    ("hardware", "training", "message"),
    [
        (Hardware(machines=2), {}, "this is no SLURM job"),
        (Hardware(processes=3), {"batch_size": 32}, "multiple of 3"),
        (Hardware(processes=2, accumulate=4), {"batch_size": 12}, "multiple of 8"),
        (Hardware(processes=2, parallel="zero2"), {"ema": 0.9}, "choose parallel ddp"),
        (Hardware(processes=2, parallel="zero2", accumulate=2), {}, "accumulate"),
        (Hardware(parallel="zero3"), {}, "zero3 cuts the weights up.*there is one"),
    ],
)
def test_what_this_machine_cannot_meet_is_an_error(
    hardware: Hardware, training: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    with pytest.raises(InputError, match=message):
        settle(hardware, Training(**training))


def test_more_machines_than_the_job_has_are_refused_and_auto_takes_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert settle(Hardware(machines="auto"), Training()).machines == 2
    with pytest.raises(InputError, match=r"machines is 3, and this SLURM job has 2"):
        settle(Hardware(machines=3), Training(batch_size=6))


def test_processes_are_one_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert settle(Hardware(device="gpu", processes="auto"), Training()).processes == 4
    with pytest.raises(InputError, match=r"processes is 8 and this machine has 4 GPUs"):
        settle(Hardware(device="gpu", processes=8), Training())


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"nocturnal-kedro\[deepspeed\]\""):
        settle(Hardware(processes=2, parallel="zero2"), Training())


def test_processes_that_nobody_started_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, and says nothing."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="asked for: processes 1 instead of 2"):
        start_accelerator(SettledHardware(processes=2), Training())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="asked for: processes 2 instead of 1"):
        start_accelerator(SettledHardware(), Training())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("mixed_precision", "no", "precision no instead of bf16"),
        ("num_processes", 2, "processes 2 instead of 1"),
        ("device", torch.device("meta"), "device meta instead of cpu"),
    ],
)
def test_accelerate_is_held_to_what_was_asked(
    attribute: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, attribute, property(lambda self: value))
    with pytest.raises(InputError, match=message):
        start_accelerator(SettledHardware(precision="bf16"), Training())


def test_the_environment_does_not_change_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_accelerator(SettledHardware(), Training()).mixed_precision == "no"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert (
        start_accelerator(SettledHardware(precision="bf16"), Training()).mixed_precision == "bf16"
    )
