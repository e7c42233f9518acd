"""From a published checkpoint to a model, and what stops on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.windows import Channels
from nocturnal_kedro.training import published as published_weights
from nocturnal_kedro.training.artifact import load_artifact, save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.forecast import forecast
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.published import find_checkpoint
from nocturnal_kedro.training.start import start_model

SHORT = Training(epochs=1, steps_per_epoch=3, batch_size=8)


def options(name: str = "ttm", **given: Any) -> Any:
    return plugins.options("model", name, given)


@pytest.fixture(scope="module")
def published(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a published TTM: one channel, scaled by its own window, horizon longer than asked for."""
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerForPrediction

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    TinyTimeMixerForPrediction(
        TinyTimeMixerConfig(
            context_length=512,
            prediction_length=144,
            patch_length=64,
            patch_stride=64,
            d_model=32,
            num_layers=2,
            adaptive_patching_levels=2,
            decoder_d_model=16,
            decoder_num_layers=1,
            scaling="std",
        )
    ).save_pretrained(folder)
    return folder


def test_zero_shot_of_a_checkpoint_knows_glucose_alone(published: Path, task: Task) -> None:
    start = start_model("ttm", options(strategy="zero_shot", weights=str(published)), task)
    assert start.channels.context == ("glucose_mg_dl",)
    assert not start.fresh
    with pytest.raises(InputError, match=r"cannot be given 'iob_u' untrained.*none.*fine_tune"):
        start_model(
            "ttm",
            options(strategy="zero_shot", weights=str(published), covariates=("iob_u",)),
            task,
        )


def test_zero_shot_is_scored_as_it_is(published: Path, data: Data) -> None:
    given = {"strategy": "zero_shot", "weights": str(published)}
    artifact = fit_model("ttm", given, data, SHORT)
    assert artifact.base["sha256"].keys() == {"model.safetensors"}
    frame, _ = forecast(artifact, data.corpus, data.splits, data.origins)
    assert np.isfinite(frame["forecast_mg_dl"]).all()
    assert not artifact.state


def test_fine_tuning_adds_weights_for_covariates_and_trains_them(
    published: Path, data: Data
) -> None:
    given = {"strategy": "fine_tune", "weights": str(published)}
    torch.manual_seed(SHORT.seed)  # as the fit does: the same fresh weights
    start = start_model("ttm", options(**given), data.task)
    assert start.channels.covariates == ("iob_u", "cob_g", "clock")
    assert start.fresh
    assert all("channel" in name or "fcm" in name or "mixer" in name for name in start.fresh)

    lora = fit_model("ttm", given | {"lora": {"rank": 2}}, data, SHORT)
    trained = {name.replace(".base_layer.", ".") for name in lora.state if ".lora_" not in name}
    assert trained == set(start.fresh)
    kept = lora.record["trained_parameters"]
    assert kept == sum(array.size for array in lora.state.values())
    before = {n: w.numpy() for n, w in start.module.state_dict().items() if n in start.fresh}
    fresh = {n.replace(".base_layer.", "."): array for n, array in lora.state.items()}
    still = {name for name in before if np.array_equal(before[name], fresh[name])}
    assert not still
    # Three steps take a weight a little way: from the same start, and not from another.
    far = max(np.abs(before[name] - fresh[name]).max() for name in before)
    assert far < 5 * lora.options["learning_rate"]


def test_weights_from_scratch_are_not_those_of_a_checkpoint(published: Path, task: Task) -> None:
    """A silent fall-back to fresh weights would go unnoticed in any score."""
    from safetensors.torch import load_file

    saved = load_file(published / "model.safetensors")
    start = start_model("ttm", options(strategy="zero_shot", weights=str(published)), task)
    state = start.module.state_dict()
    assert all(torch.equal(state[f"network.{name}"], weight) for name, weight in saved.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strategy": "fine_tune"}, r"needs weights.*preset=released|needs weights.*\(none"),
        ({"strategy": "from_scratch", "weights": "x"}, "from_scratch starts without"),
        ({"strategy": "zero_shot", "weights": "x", "network": {"d_model": 8}}, "leave network out"),
        ({"lora": {}}, "strategy fine_tune, not from_scratch"),
        ({"strategy": "zero_short"}, "'from_scratch', 'fine_tune' or 'zero_shot'"),
        ({"preset": "huge"}, "'tiny', 'small' or 'released'"),
        ({"covariates": ["clock", "clock"]}, "named twice"),
        ({"network": {"d_modl": 8}}, "d_modl"),
    ],
)
def test_options_that_contradict_each_other(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        options(**given)


def test_the_released_preset_names_its_checkpoint() -> None:
    chosen = options(preset="released", strategy="fine_tune")
    assert chosen.weights == "ibm-granite/granite-timeseries-ttm-r2"
    assert chosen.network is None
    assert options(preset="released").network.d_model == 192


def test_a_checkpoint_of_another_task_says_what_would_fit(published: Path) -> None:
    asked = options(strategy="zero_shot", weights=str(published))
    with pytest.raises(InputError, match=r"reads 512 steps and forecasts 144.*context_steps=512"):
        start_model("ttm", asked, Task(context_steps=600))
    with pytest.raises(InputError, match="the task has 512 and 200"):
        start_model("ttm", asked, Task(horizon_steps=200))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("cut", r"model\.safetensors' is damaged or cut short"),
        ("no weights", r"no \*\.safetensors in .*Pickled weights"),
        ("no config", r"no config\.json in that folder"),
        ("config is no JSON", r"config\.json' cannot be read"),
        ("other config", r"are of another size: network\..* has the shape"),
        ("other model", r"are not of 'ttm': config\.json has no 'context_length'"),
        ("other names", "are of another model: none of their"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(
    published: Path, task: Task, tmp_path: Path, damage: str, told: str
) -> None:
    from safetensors.torch import save_file

    config = (published / "config.json").read_text()
    weights = (published / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text(
        {
            "config is no JSON": config[:-40],
            "other config": config.replace('"d_model": 32', '"d_model": 64'),
            "other model": '{"chronos_config": {}}',
        }.get(damage, config)
    )
    if damage == "no config":
        (tmp_path / "config.json").unlink()
    if damage == "other names":
        save_file({"layer": torch.zeros(3)}, tmp_path / "model.safetensors")
    elif damage != "no weights":
        (tmp_path / "model.safetensors").write_bytes(weights[:-100] if damage == "cut" else weights)
    with pytest.raises(InputError, match=told):
        start_model("ttm", options(strategy="zero_shot", weights=str(tmp_path)), task)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("no/such/folder", "no such folder, and an id on the hub has the form owner/name"),
        ("/no/such", "no such folder"),
        ("word", "owner/name"),
    ],
)
def test_weights_that_are_nowhere(weights: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        find_checkpoint(weights)


def test_a_folder_has_no_revision(published: Path) -> None:
    with pytest.raises(InputError, match="is a folder, which has no revision"):
        find_checkpoint(str(published), "main")


def test_an_absent_hub_is_told_at_once_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is waited for is one connection, not the hub's client, which tries for 23 s."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []
    real = huggingface_hub.snapshot_download

    def spy(*arguments: Any, **given: Any) -> str:
        asked.append(given.get("local_files_only", False))
        return real(*arguments, cache_dir=tmp_path, **given)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spy)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setattr(published_weights, "SECONDS_TO_ANSWER", 0.8)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError,
        match=r"config\.json and \*\.safetensors are neither.*127\.0\.0\.1 cannot be reached.*"
        r"hf download ibm-granite/x --revision r2 --local-dir FOLDER.*weights=FOLDER",
    ):
        find_checkpoint("ibm-granite/x", "r2")
    assert asked == [True]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        find_checkpoint("ibm-granite/x")


def test_a_name_that_is_never_resolved_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    for_ever = threading.Event()

    def resolve(*_: object) -> None:
        for_ever.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", resolve)
    monkeypatch.setattr(published_weights, "SECONDS_TO_ANSWER", 0.05)
    with pytest.raises(InputError, match=r"no answer within 0\.05 s"):
        published_weights._require_reached("https://hub.invalid", "absent, and", "Remedy.")
    for_ever.set()


def test_the_hubs_cache_is_used_without_asking(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The layout of the cache: refs name a commit, a commit's folder holds the files."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--ibm-granite--x"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(published)
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **given: real(*a, cache_dir=tmp_path, **given),
    )
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    found = find_checkpoint("ibm-granite/x")
    assert found.revision == commit
    assert found.identity()["revision"] == commit
    assert found.state()


def in_two_files(published: Path, folder: Path) -> Path:
    """The same checkpoint as `save_pretrained` writes a large one: files, and which holds what."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    (folder / "config.json").write_bytes((published / "config.json").read_bytes())
    weights = sorted(load_file(published / "model.safetensors").items())
    index = {}
    for number, part in enumerate((weights[::2], weights[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), folder / file)
        index |= {name: file for name, _ in part}
    listed = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(listed)
    return folder


def test_a_checkpoint_in_files_is_read_whole_or_not_at_all(published: Path, tmp_path: Path) -> None:
    folder = in_two_files(published, tmp_path / "two")
    whole = find_checkpoint(str(published)).state()
    read = find_checkpoint(str(folder)).state()
    assert read.keys() == whole.keys()
    assert all(torch.equal(read[name], weight) for name, weight in whole.items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    told = r"index\.json lists model-00002-of-00002\.safetensors, not to be found in .*two'"
    with pytest.raises(InputError, match=told):
        find_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json' cannot be read"):
        find_checkpoint(str(folder))


def test_a_download_cut_short_is_not_taken_from_the_hubs_cache(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    folder = in_two_files(published, tmp_path / "commit")
    second = folder / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.unlink()
    asked = []

    def download(weights: str, local_files_only: bool = False, **_: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only and content:
            second.write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(published_weights, "_require_reached", lambda *_: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"neither a folder's nor whole.*HF_HUB_OFFLINE is set"):
        find_checkpoint("owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert find_checkpoint("owner/name").revision == "commit"
    assert asked == [True, True, False]
    second.unlink()
    content = b""  # a hub that lacks it too
    with pytest.raises(InputError, match=r"lists model-00002-of-00002\.safetensors"):
        find_checkpoint("owner/name")


def test_weights_changed_since_the_fit_are_refused(
    published: Path, data: Data, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(published, tmp_path / "base")
    given = {"strategy": "zero_shot", "weights": str(tmp_path / "base")}
    artifact = fit_model("ttm", given, data, SHORT)
    state = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: w + 1 for name, w in state.items()}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(InputError, match=r"was fitted to other weights than .*base' holds now"):
        forecast(artifact, data.corpus, data.splits, data.origins)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match="no such folder"):
        forecast(artifact, data.corpus, data.splits, data.origins)


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "ttm"
    save_artifact(fit_model("ttm", {"preset": "tiny"}, data, SHORT), folder)
    return folder


def test_weights_that_have_seen_the_tested_people_are_refused(fitted: Path, data: Data) -> None:
    """Fitted with other splits, they would be tested on people that they have learnt from."""
    series_splits = data.splits.assign(
        split=data.splits["split"].replace({"patient": "train", "train": "train"})
    )
    swapped = series_splits["subject"] == sorted(set(data.splits["subject"]))[0]
    series_splits.loc[swapped, "split"] = "patient"
    series_splits = series_splits.drop_duplicates(["subject", "split", "start"])
    origins = build_origins(data.corpus, series_splits, data.task)[0]
    other = Data(data.corpus, series_splits, origins, data.task)
    given = {"strategy": "zero_shot", "weights": str(fitted)}
    with pytest.raises(InputError, match="people that are tested on now"):
        fit_model("ttm", given, other, SHORT)


def test_a_fitted_model_keeps_its_covariates_and_its_task(fitted: Path, task: Task) -> None:
    given = {"strategy": "fine_tune", "weights": str(fitted)}
    start = start_model("ttm", options(**given), task)
    assert start.channels == Channels(("iob_u", "cob_g", "clock"))
    with pytest.raises(InputError, match="have learnt from iob_u, cob_g, clock"):
        start_model("ttm", options(**given, covariates=("clock",)), task)
    with pytest.raises(InputError, match="512 steps of context and 96 of horizon"):
        start_model("ttm", options(**given), Task(horizon_steps=72))
    with pytest.raises(InputError, match=r"are of 'ttm'.*'chronos2'"):
        start_model("chronos2", options("chronos2", **given), task)


def test_training_that_changes_nothing_is_an_error(fitted: Path, data: Data) -> None:
    given = {"strategy": "fine_tune", "weights": str(fitted), "learning_rate": 1e-30}
    still = SHORT.model_copy(update={"weight_decay": 0.0})
    with pytest.raises(InputError, match=r"changed none of its .* trainable weights\. Raise"):
        fit_model("ttm", given, data, still)


def test_adapters_stand_on_adapters(fitted: Path, data: Data, tmp_path: Path) -> None:
    """A model adapted twice takes its base from one adapted once, and that from the first."""
    once = {"strategy": "fine_tune", "weights": str(fitted), "lora": {"rank": 2}}
    first = fit_model("ttm", once, data, SHORT)
    save_artifact(first, tmp_path / "once")
    twice = once | {"weights": str(tmp_path / "once")}
    save_artifact(fit_model("ttm", twice, data, SHORT), tmp_path / "twice")
    artifact = load_artifact(tmp_path / "twice")
    frame, _ = forecast(artifact, data.corpus, data.splits, data.origins)
    assert np.isfinite(frame["forecast_mg_dl"]).all()
    (tmp_path / "once" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"once/weights\.safetensors' is damaged"):
        forecast(artifact, data.corpus, data.splits, data.origins)


def test_an_artifact_of_another_version_is_told(fitted: Path, data: Data) -> None:
    artifact = load_artifact(fitted)
    name = next(iter(artifact.state))
    missing = {key: array for key, array in artifact.state.items() if key != name}
    for state in (missing, artifact.state | {"more": np.zeros(1, np.float32)}):
        with pytest.raises(InputError, match="written by another version"):
            forecast(replace(artifact, state=state), data.corpus, data.splits, data.origins)


def test_all_weights_can_be_tuned_after_adapters(fitted: Path, data: Data, tmp_path: Path) -> None:
    """Adapters freeze what is beside them; what starts from their model is free again."""
    adapted = {"strategy": "fine_tune", "weights": str(fitted), "lora": {"rank": 2}}
    save_artifact(fit_model("ttm", adapted, data, SHORT), tmp_path / "adapted")
    whole = {"strategy": "fine_tune", "weights": str(tmp_path / "adapted")}
    tuned = fit_model("ttm", whole, data, SHORT)
    assert tuned.record["trained_parameters"] == tuned.record["parameters"]


def test_tuning_that_makes_it_worse_is_told(
    fitted: Path, data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"strategy": "fine_tune", "weights": str(fitted), "learning_rate": 3.0}
    artifact = fit_model("ttm", given, data, SHORT)
    assert "training made it worse, and it is scored as such" in caplog.text
    assert artifact.log["epoch"].tolist() == [0, 1]
    assert artifact.log["validation_rmse"].idxmin() == 0
    assert artifact.record["best_epoch"] == 1


def test_the_usual_learning_rate_is_that_of_the_start() -> None:
    there = {"strategy": "fine_tune", "weights": "a/b"}
    rates = [
        plugins.options("model", "chronos2", given).learning_rate
        for given in ({}, there, there | {"lora": {}}, there | {"learning_rate": 0.5})
    ]
    assert rates == [3e-3, 1e-6, 1e-5, 0.5]


def test_a_size_of_fresh_weights_is_refused_beside_weights() -> None:
    there = {"strategy": "fine_tune", "weights": "a/b"}
    with pytest.raises(InputError, match="preset tiny is a size of fresh weights"):
        plugins.options("model", "ttm", there | {"preset": "tiny"})
    with pytest.raises(InputError, match="network is the size of fresh weights"):
        plugins.options("model", "ttm", there | {"network": {"d_model": 8}})
