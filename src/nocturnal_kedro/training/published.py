"""Weights that exist: a folder or a repository on the hub, found, identified and read."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.artifact import SUMS, sha256

CONFIG, WEIGHTS = "config.json", "*.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files: which file holds which
SECONDS_TO_ANSWER = 0.8  # of the hub; left alone, its client tries for 23 s


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors, and which one it is."""

    folder: Path
    weights: str  # as it was asked for
    revision: str | None  # commit of the hub's repository; None for a folder

    def identity(self) -> dict[str, Any]:
        """What an artifact keeps of it: where it is from, and the hash of its weights."""
        hashes = {file.name: sha256(file) for file in self._files()}
        return {"weights": self.weights, "revision": self.revision, "sha256": hashes}

    def state(self) -> dict[str, torch.Tensor]:
        """Every weight by the library's name, as float32."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        state: dict[str, torch.Tensor] = {}
        for file in self._files():
            try:
                state |= load_file(file)
            except SafetensorError as error:
                raise InputError(
                    f"weights '{self.weights}': '{file}' is damaged or cut short ({error}). Copy "
                    f"or download it again."
                ) from error
        return {name: w.float() if w.is_floating_point() else w for name, w in state.items()}

    def _files(self) -> list[Path]:
        files = sorted(self.folder.glob(WEIGHTS))
        if not files:
            raise InputError(
                f"weights '{self.weights}': no {WEIGHTS} in '{self.folder}'. Pickled weights "
                f"(.bin, .pt) are not read: save the model again by save_pretrained."
            )
        return files


def is_artifact(weights: str) -> bool:
    """Whether `weights` is the folder of a model that this project has fitted."""
    return (Path(weights).expanduser() / SUMS).is_file()


def require_found(weights: str, revision: str | None) -> None:
    """Raise `InputError` unless there are such weights; the hub's are fetched into its cache."""
    if not is_artifact(weights):
        find_checkpoint(weights, revision)


def find_checkpoint(weights: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint in the folder, or of that id: from the hub's cache, or else from the hub.

    A folder is looked for first. What the cache holds is taken without asking the hub: the same run
    has the same weights; what it holds in part is fetched from the hub. Raises `InputError` where a
    folder lacks one of its files, and within a second where there is neither folder, nor cache, nor
    hub.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        if revision:
            raise InputError(
                f"weights '{weights}' is a folder, which has no revision: leave it out."
            )
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"weights '{weights}': no {CONFIG} in that folder. Give the folder that "
                f"save_pretrained wrote, or of a fitted model: "
                f"data/06_models/EXPERIMENT/MODEL/VERSION/MODEL."
            )
        _require_complete(folder, weights)
        return Checkpoint(folder.resolve(), str(folder.resolve()), None)
    if folder.is_absolute() or weights.count("/") != 1 or weights.startswith((".", "~")):
        raise InputError(
            f"weights '{weights}': there is no such folder, and an id on the hub has the form "
            f"owner/name."
        )
    return _from_hub(weights, revision)


def _from_hub(weights: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        cached = Path(
            snapshot_download(
                weights, revision=revision, local_files_only=True, allow_patterns=wanted
            )
        )
    except LocalEntryNotFoundError:
        cached = None
    if (
        cached is not None
        and (cached / CONFIG).is_file()
        and list(cached.glob(WEIGHTS))
        and not _lacking(cached, weights)
    ):
        return Checkpoint(cached, weights, cached.name)

    remedy = (
        f"On a machine that reaches it: hf download {weights}"
        + (f" --revision {revision}" if revision else "")
        + " --local-dir FOLDER. Then give weights=FOLDER here."
    )
    absent = (
        f"weights '{weights}': {CONFIG} and {WEIGHTS} are neither a folder's nor whole in the "
        f"hub's cache ({constants.HF_HUB_CACHE})"
    )
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{absent}, and HF_HUB_OFFLINE is set. {remedy}")
    _require_reached(constants.ENDPOINT, f"{absent}, and", remedy)
    try:
        folder = Path(snapshot_download(weights, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{absent}, and the hub did not give it: {error}. {remedy}") from error
    _require_complete(folder, weights)
    return Checkpoint(folder, weights, folder.name)


def _require_complete(folder: Path, weights: str) -> None:
    lacking = _lacking(folder, weights)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(
            f"weights '{weights}': {INDEX} lists {lacking[0]}{more}, not to be found in "
            f"'{folder}'. Copy or download it whole."
        )


def _lacking(folder: Path, weights: str) -> list[str]:
    """Files of the weights that the index lists and the folder lacks."""
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        listed = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"weights '{weights}': '{index}' cannot be read ({error!r}). Copy or download it again."
        ) from error
    return sorted(name for name in listed if not (folder / name).is_file())


def _require_reached(endpoint: str, absent: str, remedy: str) -> None:
    scheme = urlsplit(endpoint).scheme
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme}_proxy".upper())
    address = urlsplit(proxy or endpoint)
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    fault = [f"no answer within {SECONDS_TO_ANSWER} s"]

    def reach() -> None:
        try:
            socket.create_connection((host, port), SECONDS_TO_ANSWER).close()
            fault.clear()
        except OSError as error:
            fault[:] = [str(error)]

    # In a thread: the look-up of a name has no limit of its own.
    trial = threading.Thread(target=reach, daemon=True)
    trial.start()
    trial.join(SECONDS_TO_ANSWER)
    if fault:
        raise InputError(f"{absent} {host} cannot be reached ({fault[0]}). {remedy}")
