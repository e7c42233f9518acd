"""Where tensors live and how many processes there are: what was asked for, or an error."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.options import Hardware, SettledHardware, Training

if TYPE_CHECKING:
    from accelerate import Accelerator

TORCH_NAME = {"cpu": "cpu", "gpu": "cuda"}
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # in accelerate's words
NODES = "SLURM_JOB_NUM_NODES"


def require_device(device: str) -> None:
    """Raise `InputError` if torch cannot use the device."""
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError(
            "hardware.device is 'gpu' and torch sees none on this machine. Run without --env (or "
            "with --params=hardware.device=cpu), or on a machine with a GPU and a CUDA build of "
            "torch."
        )


def device_name(device: str) -> str:
    """What the device is called by its maker, and how many this machine has; "cpu" for the CPU."""
    if device == "cpu":
        return "cpu"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def settle(hardware: Hardware, training: Training) -> SettledHardware:
    """The numbers that `auto` stands for here; `InputError` where they cannot be had."""
    require_device(hardware.device)
    gpus = torch.cuda.device_count() if hardware.device == "gpu" else 0
    processes = gpus if hardware.processes == "auto" else hardware.processes
    if gpus and processes > gpus:
        raise InputError(
            f"hardware.processes is {processes} and this machine has {gpus} GPUs, one for each. "
            f"Ask for at most {gpus}, or for auto."
        )
    given = int(os.environ.get(NODES, 1))
    machines = given if hardware.machines == "auto" else hardware.machines
    if machines > given:
        raise InputError(
            f"hardware.machines is {machines}, and "
            + (f"this SLURM job has {given}" if NODES in os.environ else "this is no SLURM job")
            + ". Submit slurm/multi_node.sh with --nodes, or ask for fewer."
        )
    parts = machines * processes * hardware.accumulate
    if training.batch_size % parts:
        raise InputError(
            f"training.batch_size is {training.batch_size}, and {machines} machines x {processes} "
            f"processes x {hardware.accumulate} parts take equal shares of it. Make it a multiple "
            f"of {parts}."
        )
    if training.ema and hardware.parallel != "ddp":
        raise InputError(
            f"training.ema keeps a whole copy of the weights, and parallel "
            f"{hardware.parallel} cuts them up. Leave ema out, or choose parallel ddp."
        )
    if hardware.parallel != "ddp" and machines * processes == 1:
        raise InputError(
            f"hardware.parallel {hardware.parallel} cuts the weights up over processes, and there "
            f"is one. Choose parallel ddp, which trains by one as well, or ask for more."
        )
    if hardware.parallel.startswith("zero"):
        if hardware.accumulate > 1:
            raise InputError(
                f"hardware.accumulate is {hardware.accumulate}, and with parallel "
                f"{hardware.parallel} a step is one part. Leave it out, or choose parallel ddp."
            )
        _require_deepspeed(hardware.parallel)
    numbers = {"machines": machines, "processes": processes}
    return SettledHardware(**hardware.model_dump() | numbers)


def start_accelerator(hardware: SettledHardware, training: Training) -> Accelerator:
    """An accelerator with the device, the processes, the sharding and the precision asked for.

    Raises `InputError` where accelerate would quietly use other ones.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    require_device(hardware.device)
    world = hardware.world
    started = int(os.environ.get("WORLD_SIZE", 1))
    _require_same({"processes": world}, {"processes": started})
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the settings of the last one
    settings: dict[str, Any] = {"mixed_precision": PRECISION[hardware.precision]}
    if hardware.device == "cpu" and world > 1:
        # Beside deepspeed_plugin, accelerate would take cpu=True for plain DDP.
        settings["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    settings["cpu"] = hardware.device == "cpu" and not hardware.parallel.startswith("zero")
    if world > 1 and hardware.parallel == "fsdp":
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import MixedPrecisionPolicy

        settings["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="size_based_wrap",
            min_num_params=1_000_000,
            # Weights stay as they are, and autocast chooses: see `with_autocast`.
            mixed_precision_policy=MixedPrecisionPolicy(),
        )
    if world > 1 and hardware.parallel.startswith("zero"):
        settings["deepspeed_plugin"] = _deepspeed(hardware, training)
        settings["mixed_precision"] = "no"  # by DeepSpeed's own autocast
    if hardware.compile:
        settings["dynamo_backend"] = "inductor"
    accelerator = Accelerator(**settings)
    _require_same(
        {
            "processes": world,
            "device": TORCH_NAME[hardware.device],
            "precision": settings["mixed_precision"],
            "parallel": _accelerates_name(hardware),
        },
        {
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "parallel": accelerator.distributed_type.value,
        },
    )
    return accelerator


def with_autocast(module: nn.Module, hardware: SettledHardware, accelerator: Accelerator) -> None:
    """Have the forward pass choose the precision of each operation, in place.

    accelerate does that but for FSDP, whose weights it cuts to 16 bits instead: they then meet
    inputs of 32, and what is scaled in the model loses digits.
    """
    if hardware.parallel == "fsdp":
        module.forward = accelerator.autocast()(module.forward)


def _require_same(asked: dict[str, Any], got: dict[str, Any]) -> None:
    other = [name for name in asked if asked[name] != got[name]]
    if other:
        raise InputError(
            "training got other hardware than it asked for: "
            + ", ".join(f"{name} {got[name]} instead of {asked[name]}" for name in other)
            + ". Unset the ACCELERATE_*, WORLD_SIZE and RANK variables of the environment, and "
            "start with `kedro run` alone."
        )


def _accelerates_name(hardware: SettledHardware) -> str:
    if hardware.world == 1:
        return "NO"
    if hardware.parallel == "ddp":
        return "MULTI_GPU" if hardware.device == "gpu" else "MULTI_CPU"
    return "FSDP" if hardware.parallel == "fsdp" else "DEEPSPEED"


def _require_deepspeed(parallel: str) -> None:
    from importlib.util import find_spec

    there = find_spec("deepspeed") is not None
    if not there or find_spec("deepspeed.runtime.torch_autocast") is None:
        raise InputError(
            f"hardware.parallel {parallel} needs DeepSpeed, which is "
            f"{'too old' if there else 'not installed'}: "
            f'pip install "nocturnal-kedro[deepspeed]". Or choose ddp or fsdp.'
        )


def _deepspeed(hardware: SettledHardware, training: Training) -> Any:
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(
        zero_stage=int(hardware.parallel.removeprefix("zero")),
        gradient_accumulation_steps=hardware.accumulate,
        gradient_clipping=training.clip_norm,
        zero3_save_16bit_model=hardware.parallel == "zero3",
    )
    share = training.batch_size // (hardware.world * hardware.accumulate)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = share
    if hardware.precision != "fp32":
        # Its usual way to 16 bits casts the weights, which then meet inputs of 32.
        kind = {"bf16": "bfloat16", "fp16": "float16"}[hardware.precision]
        plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": kind}
    # Without, it refuses every optimizer but its own.
    plugin.deepspeed_config["zero_allow_untested_optimizer"] = True
    return plugin
