"""Models of scripts: taken over unchanged, twice as once, and nothing hostile in them is obeyed."""

import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.registry import legacy_network
from nocturnal_kedro.registry.migration import Migration, migrate, tell_migration
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import Batch
from nocturnal_kedro.training.artifact import load_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model, require_apart
from nocturnal_kedro.training.forecast import forecast
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.start import restore_model
from nocturnal_kedro.training.trained import Trained
from tests.conftest import Run
from tests.registry.legacy_folders import (
    METADATA,
    TINY,
    hub_folder,
    network,
    script_folder,
    wrapped,
)

NAME = "20240131_221500_ohio_fine_tune"
NOWHERE = Registry("sqlite:////nowhere/mlflow.db")  # which a dry run does not open


def told_of(root: Path, kept: Path | None = None, **options: Any) -> pd.DataFrame:
    """A dry run, by folder."""
    store = Trained(kept or root / "kept")
    return migrate(str(root), Migration(**options), store, NOWHERE).set_index("folder")


def only(root: Path, **options: Any) -> pd.Series:
    [(_, row)] = told_of(root, **options).iterrows()
    return row


def bytes_below(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# What is taken over


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_length": 360, "prediction_length": 24, "patch_length": 36, "patch_stride": 36},
        {"num_input_channels": 4, "prediction_channel_indices": [2], "use_decoder": False},
        {"adaptive_patching_levels": 2, "resolution_prefix_tuning": True, "self_attn": True},
        {"decoder_raw_residual": True, "decoder_d_model": 16, "norm_mlp": "BatchNorm"},
        {"gated_attn": False, "use_positional_encoding": True, "norm_eps": 1e-3},
        {"scaling": "std", "prediction_filter_length": 48, "expansion_factor": 3},
    ],
)
@pytest.mark.parametrize("layout", ["safetensors", "bin", "script"])
def test_a_network_of_any_kind_forecasts_as_it_did(
    changes: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    if layout == "script":  # which says no more than no shape tells
        said = ("context_length", "norm_eps", "num_input_channels", "scaling")
        said += ("prediction_channel_indices", "prediction_filter_length")
        config = {"network": {n: v for n, v in (TINY | changes).items() if n in said}}
        script_folder(tmp_path, NAME, config=config, **changes)
    else:
        hub_folder(tmp_path, safe=layout == "safetensors", **changes)
    row = only(tmp_path)
    assert (row.state, row.reason) == ("ready", "")
    assert 0 <= row.difference_mg_dl < 0.001
    assert row.parameters == sum(weight.numel() for weight in network(**changes).parameters())
    horizon = changes.get("prediction_filter_length", changes.get("prediction_length", 96))
    assert (row.context_steps, row.horizon_steps) == (changes.get("context_length", 512), horizon)


def test_the_artifact_says_what_the_network_said(tmp_path: Path, registry: Registry) -> None:
    """By hand: (mg/dL - 150) / 60 into the old network, and its answer back."""
    old: Any = network(3, scaling=None).eval()
    state = wrapped(old.state_dict(), "module._orig_mod.")
    scaler = {"scaler": {"mean": [150.0], "scale_": [60.0]}}
    config = {"model": {"context_length": 512, "scaling": None}, "seed": 3}
    folder = script_folder(
        tmp_path, NAME, {"epoch": 2, "model_state_dict": state}, config, METADATA | scaler
    )
    options = Migration(apply=True)
    table = migrate(str(tmp_path), options, Trained(tmp_path / "kept"), registry)
    assert table["state"].tolist() == ["taken over"]
    artifact = registry.get_model("legacy/1")
    glucose_NL = torch.linspace(60, 300, 2 * 512).reshape(2, 512) + 20 * torch.randn(2, 512)
    with torch.no_grad():
        scaled_NL1 = ((glucose_NL - 150) / 60)[..., None]
        said_NH = old(past_values=scaled_NL1).prediction_outputs[..., 0] * 60 + 150
        own = restore_model(artifact, Task.model_validate(artifact.record["task"])).eval()
        none_NH = torch.zeros(2, 96)
        empty = (torch.zeros(2, 96, 0), torch.zeros(2, 96, 0).bool(), none_NH, none_NH.bool())
        scaled = (glucose_NL - artifact.scaler.mean["glucose_mg_dl"]) / artifact.scaler.std[
            "glucose_mg_dl"
        ]
        answer = own(Batch(scaled[..., None], torch.ones(2, 512, 1).bool(), *empty))
    assert said_NH.std() > 1
    np.testing.assert_allclose(artifact.scaler.to_mg_dl(answer.point_BH), said_NH, atol=1e-3)

    assert artifact.record["legacy"]["texts"]["metadata.json"] == METADATA | scaler
    assert artifact.record["legacy"]["texts"]["config.yaml"] == config
    assert artifact.log["val_loss"].tolist() == [1.1, 1.0]
    tags = registry.find("legacy/1").tags
    assert tags["legacy.rmse"] == "21.5"
    assert tags["legacy.git.commit"] == "abc1234"
    assert (tags["legacy.dataset"], tags["legacy.strategy"]) == ("ohio", "fine_tune")
    assert tags["nocturnal.strategy"] == "fine_tune"
    none = Spread.none(96)
    for part, expected in zip(artifact.spread, none, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert artifact.record["calibrated"] is False
    assert "not calibrated" in table["notes"][0]
    assert (folder / "model.pt").exists()


def test_twice_is_once_and_a_dry_run_is_nothing(tmp_path: Path, registry: Registry) -> None:
    root, kept = tmp_path / "old", Trained(tmp_path / "kept")
    script_folder(root, NAME)
    hub_folder(root, seed=1)
    (root / "ttm" / "empty").mkdir()
    before = bytes_below(tmp_path)

    def again(apply: bool = True) -> pd.DataFrame:
        return migrate(str(root), Migration(apply=apply), kept, registry)

    dry = again(apply=False)
    assert dry["state"].tolist() == ["ready", "ready", "broken"]
    assert "Nothing was changed" in tell_migration(dry)
    assert bytes_below(tmp_path) == before
    first = again()
    assert first["state"].tolist() == ["taken over", "taken over", "broken"]
    assert first["model_id"].tolist() == ["legacy/1", "legacy/2", ""]
    after = bytes_below(kept.root)
    second = again()
    assert second["state"].tolist() == ["unchanged", "unchanged", "broken"]
    assert second["model_id"].tolist() == first["model_id"].tolist()
    # A copy by another date is the same model; another weight is another.
    copy = root / "ttm" / NAME.replace("20240131", "20240201")
    shutil.copytree(root / "ttm" / NAME, copy)
    third = again().set_index("folder")
    assert third.loc[f"ttm/{copy.name}", "model_id"] == "legacy/2"
    assert bytes_below(kept.root) == after
    assert len(registry.find_models(experiment="legacy")) == 2
    torch.save(network(5).state_dict(), copy / "model.pt")
    assert again().set_index("folder").loc[f"ttm/{copy.name}", "model_id"] == "legacy/3"
    assert again(apply=False)["state"].tolist() == ["unchanged"] * 3 + ["broken"]


def test_forecasts_that_would_change_are_refused(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_folder(tmp_path)
    monkeypatch.setattr(legacy_network, "TOLERANCE_MG_DL", 1e-9)
    store = Trained(tmp_path / "kept")
    table = migrate(str(tmp_path), Migration(apply=True), store, registry)
    assert table["state"].tolist() == ["broken"]
    assert "forecasts would change by" in table["reason"][0]
    assert not store.root.exists()
    assert registry.names() == []


# What a network was given


SCALED = {"context_length": 512, "scaling": None}


@pytest.mark.parametrize(
    ("metadata", "mean", "std"),
    [
        ({"scaler": {"mean": 150.5, "std": 60.25}}, 150.5, 60.25),
        ({"made_by": {"standardization": {"mean_": [150.5], "scale_": [60.25]}}}, 150.5, 60.25),
        ({"glucose_mean": 150.5, "glucose_std": 60.25, "mean": 3.0}, 150.5, 60.25),
        ({"unit": "mmol/L", "scaler": {"mean": 8.0, "std": 3.0}}, 8 * 18.0182, 3 * 18.0182),
        ({"scalers": {"glucose": {"mean": 150.5, "std": 60.25}, "iob": {"mean": 2, "std": 1}}},
         150.5, 60.25),
    ],
)  # fmt: skip
def test_the_scaler_of_the_folder_is_taken(
    metadata: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    script_folder(tmp_path, config=SCALED, metadata=metadata, scaling=None)
    # The folder's own wins over what is given for all.
    row = only(tmp_path, scaler_mean_mg_dl=120, scaler_std_mg_dl=40)
    assert row.state == "ready", row.reason
    assert f"{mean:.6g} and {std:.6g} mg/dL" in row.scaler


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "no scaler is in the folder.*give migration.scaler_mean_mg_dl"),
        ({"scaler": {"mean": 8.0, "std": 3.0}}, "not those of glucose in mg/dL"),
        ({"scaler": {"mean": [150, 2], "std": [60, 1]}}, "not one finite number each"),
        ({"scaler": {"mean": 150.0}}, "not one finite number each"),
        ({"scaler": {"mean": 150.0, "std": 0.0}}, "not those of glucose"),
        ({"scaler": {"data_min_": [40], "scale_": [0.003]}}, "a scaler of another kind"),
        ({"scaler": {"mean": float("nan"), "std": 60.0}}, "not one finite number each, but nan"),
        ({"unit": "furlong", "scaler": {"mean": 150, "std": 60}}, "neither mg/dL nor mmol/L"),
        ({"scaler": {"mean": 150, "std": 60}, "y_scaler": {"mean": 90, "std": 60}}, "different"),
    ],
)
def test_a_scaler_that_is_absent_or_absurd_is_asked_for(
    metadata: dict[str, Any], told: str, tmp_path: Path
) -> None:
    script_folder(tmp_path, config=SCALED, metadata=metadata, scaling=None)
    row = only(tmp_path)
    assert row.state == "broken"
    assert pd.Series([row.reason]).str.contains(told)[0], row.reason
    if not metadata:
        row = only(tmp_path, scaler_mean_mg_dl=150.5, scaler_std_mg_dl=60.25)
        assert (row.state, row.scaler) == ("ready", "the parameters: 150.5 and 60.25 mg/dL")
        with pytest.raises(ValidationError, match="or neither"):
            Migration(scaler_mean_mg_dl=150.5)


def test_a_network_that_scales_windows_itself_needs_no_scaler(tmp_path: Path) -> None:
    script_folder(tmp_path)
    assert only(tmp_path).scaler.startswith("none, and none needed")
    assert "scaling is not told: std" in only(tmp_path).notes


# Whose days it has learnt from


@pytest.fixture(scope="module")
def kept_legacy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a migrated artifact, by what is said of whom it has learnt from."""
    root = tmp_path_factory.mktemp("legacy")
    script_folder(root, "20240131_221500_azt1d_fine_tune", seed=4)

    def make(learnt_from: str) -> Path:
        from nocturnal_kedro.registry.legacy import find_folders
        from nocturnal_kedro.registry.migration import take_over

        store, [found] = Trained(root / "kept"), find_folders(root)
        taken = take_over(root, found, Migration(learnt_from=learnt_from), store)
        if not taken.known:
            store.keep(taken.artifact.record["key"], taken.artifact)
        return store.folder_of(taken.artifact.record["key"])

    return make


def test_where_nobody_knows_whom_it_learnt_from_it_is_tested_on_nobody(
    kept_legacy: Callable[..., Path], data: Data
) -> None:
    unknown = kept_legacy("")
    artifact = load_artifact(unknown)
    with pytest.raises(InputError, match="fitted to other readings, splits or origins"):
        forecast(artifact, data.corpus, data.splits, data.origins)
    for strategy in ("zero_shot", "fine_tune"):
        start = {"strategy": strategy, "weights": str(unknown)}
        with pytest.raises(InputError, match=r"does not tell which days.*migration\.learnt_from"):
            fit_model("ttm", start, data, Training(epochs=1))


def test_a_source_that_it_learnt_from_is_not_tested(
    kept_legacy: Callable[..., Path], data: Data
) -> None:
    """Neither the one that is said, nor the one in the folder's name."""
    artifact = load_artifact(kept_legacy("hupa_ucm elsewhere"))
    assert [row["source"] for row in artifact.record["learnt_from"]] == ["azt1d", "hupa_ucm"]
    for source in ("azt1d", "hupa_ucm"):
        tested = replace(data, splits=data.splits.assign(source=source))
        with pytest.raises(InputError, match=f"learnt from the source '{source}', and nobody"):
            require_apart(artifact, tested)
    # Days to train on may be of the same source.
    trained = data.splits.assign(source="azt1d")
    require_apart(artifact, replace(data, splits=trained[trained["split"] == "train"]))
    require_apart(artifact, data)
    with pytest.raises(ValidationError, match=r"unknown source 'azt1'.*Did you mean 'azt1d'"):
        Migration(learnt_from="azt1")


def test_elsewhere_it_is_tested_and_gets_its_bands(
    kept_legacy: Callable[..., Path], data: Data
) -> None:
    folder = kept_legacy("elsewhere")
    start = {"strategy": "zero_shot", "weights": str(folder)}
    own = fit_model("ttm", start, data, Training())
    assert own.scaler == load_artifact(folder).scaler
    assert {row["source"] for row in own.record["learnt_from"]} == {"azt1d", "invented"}
    frame, _ = forecast(own, data.corpus, data.splits, data.origins)
    assert (frame["q0.99"] > frame["q0.01"] + 10).mean() > 0.9
    assert frame["forecast_mg_dl"].notna().all()


# What is refused


class Shell:
    """Runs a command where it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.sentinel}",)


class Room:
    """Asks for ten gigabytes where it is unpickled."""

    def __reduce__(self) -> Any:
        return bytearray, (10**10,)


def pickled(told: Any, protocol: int) -> Callable[[Path, Path], None]:
    def attack(folder: Path, sentinel: Path) -> None:
        what = told(sentinel) if told is Shell else told()
        (folder / "model.pt").write_bytes(pickle.dumps({"weight": what}, protocol))

    return attack


def saved(told: Callable[[dict[str, Tensor], Path], Any]) -> Callable[[Path, Path], None]:
    def attack(folder: Path, sentinel: Path) -> None:
        state = torch.load(folder / "model.pt", weights_only=True)
        torch.save(told(state, sentinel), folder / "model.pt")

    return attack


def weight(name: str, change: Callable[[Tensor], Any]) -> Callable[[Path, Path], None]:
    return saved(lambda state, _: state | {name: change(state[name])})


def compressed(folder: Path, sentinel: Path) -> None:
    """Ten gigabytes of zeros would be ten megabytes."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(folder / "model.pt") as whole:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name))
        archive.writestr("model/data/99", bytes(50_000_000))
    (folder / "model.pt").write_bytes(bomb.getvalue())


def cut(folder: Path, sentinel: Path) -> None:
    content = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(content[: len(content) // 2])


def attention(folder: Path, sentinel: Path) -> None:
    """Sixteen features are not to be shared by five heads."""
    torch.save(network(self_attn=True).state_dict(), folder / "model.pt")
    said(self_attn_heads=5)(folder, sentinel)


def one_bit(folder: Path, sentinel: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content, numbers = (folder / "model.pt").read_bytes(), archive.read(largest)
    at = content.index(numbers) + 1  # within a number: it stays one
    (folder / "model.pt").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def write(name: str, text: str) -> Callable[[Path, Path], None]:
    def attack(folder: Path, sentinel: Path) -> None:
        (folder / name).write_text(text.replace("SENTINEL", str(sentinel)))

    return attack


def said(**model: Any) -> Callable[[Path, Path], None]:
    return write("config.yaml", yaml.safe_dump({"model": {"context_length": 512} | model}))


def metadata(**told: Any) -> Callable[[Path, Path], None]:
    return write("metadata.json", json.dumps(told))


def without(*names: str) -> Callable[[Path, Path], None]:
    def attack(folder: Path, sentinel: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return attack


def linked(name: str, target: str) -> Callable[[Path, Path], None]:
    def attack(folder: Path, sentinel: Path) -> None:
        path = folder / name
        outside = sentinel.parent / "outside"
        shutil.copytree(folder, outside)
        if name:
            path.unlink()
        else:
            shutil.rmtree(path)
        path.symlink_to(target.format(outside=outside))

    return attack


def renamed(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, _: shutil.move(folder, folder.with_name(name)) and None


def empty(folder: Path, sentinel: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder: Path, sentinel: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def a_pipe(folder: Path, sentinel: Path) -> None:
    (folder / "metadata.json").unlink()
    os.mkfifo(folder / "metadata.json")


def a_folder(folder: Path, sentinel: Path) -> None:
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()


HEAD = "head.base_forecast_block.weight"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(  # 2^40 keys in 1 KB
    f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(40)
)
TAG = "model: !!python/object/apply:os.system ['touch SENTINEL']\n"
REFUSED = {
    "a pickle that runs a command": (pickled(Shell, 2), "names 'posix system'"),
    "the same in a newer way": (pickled(Shell, 4), r"names 'posix system \(STACK_GLOBAL\)'"),
    "one inside torch's own file": (
        saved(lambda state, sentinel: state | {"x": Shell(sentinel)}), "names 'posix system'"
    ),
    "one beside the state dict": (
        saved(lambda state, sentinel: {"args": Shell(sentinel), "state_dict": state}),
        "names 'posix system'",
    ),
    "ten gigabytes of zeros": (
        saved(lambda state, _: {"x": Room(), "state_dict": state}), "names '__builtin__ bytearray'"
    ),
    "a tensor that declares 10 GB": (
        weight(HEAD, lambda w: torch.zeros(1).expand(2_500_000_000)), "declares 10000000000 bytes"
    ),
    "a compressed archive": (compressed, "is compressed"),
    "one bit of a weight": (one_bit, "is damaged: 'model/data/.*' has another check sum"),
    "weights cut short": (cut, "not a file of torch.save"),
    "no weights at all": (saved(lambda state, _: [1, 2]), "holds no state dict"),
    "weights that are NaN": (weight(HEAD, lambda w: w * float("nan")), f"'{HEAD}' is not finite"),
    "weights without end": (weight(HEAD, lambda w: w / 0), f"'{HEAD}' is not finite"),
    "complex weights": (weight(HEAD, lambda w: w * 1j), "is not a plain tensor"),
    "sparse weights": (weight(HEAD, lambda w: w.to_sparse()), "no part of a state dict"),
    "another horizon": (said(prediction_length=72), "prediction_length is 72, and.*have 96"),
    "another width": (said(d_model=32), "model.d_model is 32, and the weights have 16"),
    "heads that share no features": (attention, "the library cannot build such a network"),
    "another context": (said(context_length=1024), "is 1024, and the weights have 8 patches of 64"),
    "two contexts": (metadata(context_length=360), "is 512.*metadata.json: context_length is 360"),
    "a shape of its own": (weight(HEAD, lambda w: w[:, :-1]), f"'{HEAD}' has the shape"),
    "a vector for a matrix": (weight(HEAD, lambda w: w[0]), "two axes are expected"),
    "a weight too many": (
        saved(lambda state, _: state | {"more": torch.ones(1)}), "'more' is one that the config"
    ),
    "an enormous decoder": (  # 4 TB, were it built
        saved(lambda state, _: state | {"decoder.adapter.weight": torch.ones(1_000_000, 16)}),
        "it is too large",
    ),
    "an adapter": (saved(lambda state, _: state | {"lora_A": torch.ones(1)}), "merge it"),
    "another model": (saved(lambda state, _: {"fc.weight": torch.ones(2, 2)}), "not of a Tiny"),
    "a newer kind": (said(multi_quantile_head=True), "'multi_quantile_head' is not known"),
    "no context": (write("config.yaml", "model: {d_model: 16}"), "no file says context_length"),
    "an endless context": (said(context_length=10**12, patch_stride=10**11), "context_length"),
    "text for a number": (said(norm_eps="__import__('os')"), "norm_eps"),
    "other steps": (metadata(freq="15min"), "the steps here are of 5 minutes"),
    "a tag that runs code": (write("config.yaml", TAG), "not plain YAML.*python/object/apply"),
    "aliases of aliases": (write("config.yaml", BOMB), "more than 20000 values"),
    "merges of merges": (write("config.yaml", MERGES), r"merges settings into others \(<<\)"),
    "an endless number": (write("config.yaml", "a: 1" + ":59" * 90_000), "of 270001 characters"),
    "an alias of itself": (write("config.yaml", "a: &a [*a]"), "deeper"),
    "YAML that is too long": (write("config.yaml", "#" * 1_100_000), "at most 1048576 are read"),
    "JSON that is too long": (write("metadata.json", " " * 1_100_000), "has 1100000 bytes"),
    "JSON that is too deep": (write("metadata.json", "[" * 100_000), "not JSON"),
    "a log that is none": (write("training_log.json", "7"), "neither a list of epochs"),
    "settings that are a list": (write("config.yaml", "- 1"), "holds no names with values"),
    "a way out": (metadata(weights_file="../../secret.pt"), "names '../../secret.pt' as its"),
    "the way to the root": (metadata(run={"model_file": "/etc/passwd"}), "leads out of the folder"),
    "a way out of Windows": (metadata(checkpoint_file="..\\x"), "leads out of the folder"),
    "a folder elsewhere": (linked("", "{outside}"), "a link that leads out of legacy_root"),
    "a file elsewhere": (linked("model.pt", "{outside}/model.pt"), "model.pt is a link that leads"),
    "settings elsewhere": (linked("config.yaml", "/etc/hostname"), "config.yaml is a link that"),
    "a link to itself": (linked("metadata.json", "metadata.json"), "metadata.json is a link"),
    "a name that climbs": (renamed("20240131_221500_..%2F..%2Fetc_lora"), "its name holds '..'"),
    "a name of two dots and more": (renamed("..ttm"), "its name holds '..'"),
    "a name that is a formula": (renamed('=HYPERLINK("x")'), "its name holds"),
    "an empty folder": (empty, "config.yaml is missing"),
    "a file for a folder": (a_file, "is a file where the folder of a model is expected"),
    "a folder for a file": (a_folder, "config.yaml is not a file"),
    "a pipe": (a_pipe, "metadata.json is not a file"),
    "no weights": (without("model.pt"), "model.pt is missing"),
    "no settings": (without("config.yaml"), "config.yaml is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script_folder(tmp_path_factory.mktemp("whole"), NAME)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_hostile_or_broken_is_refused_by_name(
    case: str, whole: Path, tmp_path: Path
) -> None:
    attack, told = REFUSED[case]
    sentinel, root = tmp_path / "sentinel", tmp_path / "root"
    folder = Path(shutil.copytree(whole, root / "ttm" / NAME))
    good = shutil.copytree(whole, root / "ttm" / NAME.replace("ohio", "good"))
    attack(folder, sentinel)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = told_of(root)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 300_000  # KiB
    assert table["state"].drop(f"ttm/{good.name}").tolist() == ["broken"]
    [reason] = table["reason"].drop(f"ttm/{good.name}")
    assert pd.Series([reason]).str.contains(told)[0], reason
    assert "unforeseen" not in reason
    assert table.loc[f"ttm/{good.name}", "state"] == "ready"  # nothing fatal
    assert not sentinel.exists()
    assert not (root / "kept").exists()


def with_header(size: int | None = None, **told: Any) -> Callable[[bytes], bytes]:
    """The safetensors with another header before the same numbers."""

    def change(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header[HEAD] |= told
        text = json.dumps(header).encode()
        return (
            (len(text) if size is None else size).to_bytes(8, "little")
            + text
            + content[8 + length :]
        )

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_header(shape=[2_500_000_000], data_offsets=[0, 10_000_000_000]),
         f"declares tensor '{HEAD}' at bytes 0 to 10000000000, and has"),
        (with_header(data_offsets=[-4, 0]), "declares tensor"),
        (with_header(data_offsets=[8, 4]), "declares tensor"),
        (with_header(data_offsets=[0, 4]), "is not safetensors"),  # overlaps another
        (with_header(data_offsets="all"), "is not safetensors"),
        (with_header(dtype="F31"), "is not safetensors"),
        (with_header(size=2**63), "is cut short"),
        (lambda content: content[:-100], "declares tensor|is not safetensors"),
        (lambda content: content[:5], "is cut short"),
        (lambda content: b"", "is cut short"),
        (lambda content: (100_000).to_bytes(8, "little") + b"[" * 100_000, "is not safetensors"),
    ],
)  # fmt: skip
def test_safetensors_that_declare_what_is_not_there_are_refused(
    change: Callable[[bytes], bytes], told: str, tmp_path: Path
) -> None:
    file = hub_folder(tmp_path) / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    row = only(tmp_path)
    assert row.state == "broken"
    assert pd.Series([row.reason]).str.contains(told)[0], row.reason


def test_half_of_a_hub_folder_is_named(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {HEAD: state[HEAD] * float("nan")}, folder / "model.safetensors")
    assert f"weight '{HEAD}' is not finite" in only(tmp_path).reason
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "model_type 'bert'" in only(tmp_path).reason
    (folder / "config.json").unlink()
    assert only(tmp_path).reason == "config.json is missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_listed(tmp_path: Path) -> None:
    folder = script_folder(tmp_path)
    (folder / "model.pt").chmod(0)
    assert "Permission denied" in only(tmp_path).reason
    folder.chmod(0)
    assert "Permission denied" in only(tmp_path).reason
    folder.chmod(0o700)


def test_a_link_to_a_folder_that_is_listed_is_skipped(tmp_path: Path) -> None:
    folder = script_folder(tmp_path, NAME)
    (folder.parent / "latest").symlink_to(NAME)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ttm").symlink_to(folder.parent)
    assert only(tmp_path / "other").reason.startswith("is a link or a file")
    row = told_of(tmp_path).loc["ttm/latest"]
    assert (row.state, row.action) == ("skipped", f"a link to ttm/{NAME}")


def test_a_mixing_network_is_refused_with_the_reason(tmp_path: Path) -> None:
    hub_folder(tmp_path, num_input_channels=3, decoder_mode="mix_channel")
    assert "mixes its 3 channels" in only(tmp_path).reason


def test_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="legacy_root is not given"):
        migrate("", Migration(), Trained(tmp_path), NOWHERE)
    with pytest.raises(InputError, match="is not a folder"):
        told_of(tmp_path / "absent")
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="no model is below legacy_root"):
        told_of(tmp_path)


@pytest.mark.slow
@given(
    name=st.sampled_from(["model.pt", "config.yaml", "metadata.json", "training_log.json"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1),
    length=st.floats(0, 1),
)
@settings(max_examples=60)
def test_no_damage_is_fatal(
    whole: Path, name: str, places: list[tuple[float, bytes]], length: float
) -> None:
    root = whole.parents[1].with_name("damaged")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root / "ttm" / NAME)
    file = root / "ttm" / NAME / name
    content = bytearray(file.read_bytes())
    for place, new in places:
        at = int(place * len(content))
        content[at : at + len(new)] = new
    file.write_bytes(content[: max(1, int(len(content) * (1 if length > 0.3 else length)))])
    row = only(root)
    assert row.state in ("ready", "broken")
    assert "unforeseen" not in row.reason


# Through Kedro


@pytest.mark.slow
def test_the_pipeline_tells_first_and_does_it_when_asked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, data_root = tmp_path / "old", tmp_path / "data"
    script_folder(old, NAME)
    hub_folder(old, seed=1)
    pickled(Shell, 2)(script_folder(old, "20240201_000000_ohio_lora"), tmp_path / "sentinel")
    told: dict[str, Any] = {"pipeline": "migrate_ttm", "legacy_root": str(old)}
    run(data_root, **told)
    assert not (data_root / "06_models").exists()
    assert not (data_root / "mlflow.db").exists()
    said = capsys.readouterr().out
    assert "2 ready, 1 broken" in said
    assert "names 'posix system'" in said
    context = run(data_root, **told, migration={"apply": "true", "name": "old"})
    table = context.catalog.load("migration").set_index("folder")
    assert table["state"].to_dict() == {
        "mine": "taken over",
        f"ttm/{NAME}": "taken over",
        "ttm/20240201_000000_ohio_lora": "broken",
    }
    assert table.loc["mine", "model_id"] == "old/1"
    again = run(data_root, **told, migration={"apply": True, "name": "old"})
    assert sorted(again.catalog.load("migration")["state"]) == ["broken", "unchanged", "unchanged"]
    registry = Registry(f"sqlite:///{data_root}/mlflow.db")
    assert len(registry.find_models(experiment="old")) == 2
    assert not (tmp_path / "sentinel").exists()
    record = json.loads((data_root / "08_reporting" / "run_record.json").read_text())
    assert record["stages"]["migrate_ttm"]["parameters"]["legacy_root"] == str(old)
    with pytest.raises(InputError, match=r"'migration'.*'aply'"):
        run(data_root, **told, migration={"aply": True})
