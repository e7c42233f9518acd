"""Folders as scripts and the hub's client leave them, of real networks with invented weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

TINY = {
    "context_length": 512,
    "prediction_length": 96,
    "patch_length": 64,
    "patch_stride": 64,
    "d_model": 16,
    "num_layers": 2,
    "decoder_d_model": 8,
    "decoder_num_layers": 1,
}
# What a script says; all else it leaves to the library and to the weights.
SAID = {"model": {"context_length": 512, "prediction_length": 96}, "training": {"epochs": 2}}
METADATA = {"dataset_rows": 1200, "rmse": 21.5, "git": {"commit": "abc1234"}}
LOG = [{"epoch": 1, "loss": 0.9, "val_loss": 1.1}, {"epoch": 2, "loss": 0.7, "val_loss": 1.0}]


def network(seed: int = 0, **changes: Any) -> nn.Module:
    """Small, and with weights that are not those it starts with."""
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerForPrediction

    torch.manual_seed(seed)
    built = TinyTimeMixerForPrediction(TinyTimeMixerConfig(**(TINY | changes)))
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return built


def script_folder(
    root: Path,
    name: str = "20240131_221500_ohio_fine_tune",
    weights: Any = None,
    config: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    log: Any = LOG,
    **changes: Any,
) -> Path:
    """As a script leaves it, below root/ttm."""
    folder = root / "ttm" / name
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(network(**changes).state_dict() if weights is None else weights, folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(SAID if config is None else config))
    told = METADATA if metadata is None else metadata
    (folder / "metadata.json").write_text(json.dumps(told))
    (folder / "training_log.json").write_text(json.dumps(log))
    return folder


def hub_folder(root: Path, name: str = "mine", safe: bool = True, **changes: Any) -> Path:
    """As the library's save_pretrained leaves it, below root."""
    built: Any = network(**changes)
    folder = root / name
    built.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(built.state_dict(), folder / "pytorch_model.bin")
    return folder


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in state.items()}
