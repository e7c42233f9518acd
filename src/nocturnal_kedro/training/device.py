"""Where tensors live: what was asked for, or an error; never another device."""

from __future__ import annotations

import torch

from nocturnal_kedro.errors import InputError

TORCH_NAME = {"cpu": "cpu", "gpu": "cuda"}


def require_device(device: str) -> None:
    """Raise `InputError` if torch cannot use the device."""
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError(
            "training.device is 'gpu' and torch sees none on this machine. Run without "
            "--env=single_gpu (or with --params=training.device=cpu), or on a machine with a GPU "
            "and a CUDA build of torch."
        )
