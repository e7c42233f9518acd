"""What is saved loads again as it was; what is damaged or absent says so."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError, Version
from safetensors.numpy import load_file, save_file

from nocturnal_kedro.datasets import ArtifactDataset, CorpusDataset, SourceDataset
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.training.artifact import Artifact, sha256
from tests.conftest import SCALER


@pytest.fixture
def artifact() -> Artifact:
    return Artifact(
        name="ttm",
        kind="model",
        options={"d_model": 16},
        architecture={"layers": [1, None]},
        base={"weights": "owner/name", "revision": "abc", "sha256": {}},
        scaler=replace(SCALER, mean=SCALER.mean | {"glucose_mg_dl": 140.1}),
        people=("s/007", "s/b"),
        state={"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(4)},
        spread=Spread(np.arange(84.0).reshape(4, 21), np.eye(4)),
        record={"corpus": "abc", "parameters": 6},
        log=pd.DataFrame({"epoch": [1, 2], "validation_rmse": [0.5, 0.25]}),
    )


def test_artifact_loads_as_it_was_saved(artifact: Artifact, tmp_path: Path) -> None:
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    assert not dataset.exists()
    dataset.save(artifact)
    assert dataset.exists()
    loaded = dataset.load()
    assert (loaded.name, loaded.kind, loaded.options) == ("ttm", "model", {"d_model": 16})
    assert (loaded.scaler, loaded.people) == (artifact.scaler, artifact.people)
    assert loaded.record == artifact.record
    pd.testing.assert_frame_equal(loaded.log, artifact.log)
    assert loaded.state.keys() == artifact.state.keys()
    for name, array in artifact.state.items():
        np.testing.assert_array_equal(loaded.state[name], array)
    for loaded_part, part in zip(loaded.spread, artifact.spread, strict=True):
        np.testing.assert_array_equal(loaded_part, part)
    assert (loaded.architecture, loaded.base) == (artifact.architecture, artifact.base)


def test_the_hashes_are_those_of_coreutils(artifact: Artifact, tmp_path: Path) -> None:
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    dataset.save(artifact)
    folder = next(tmp_path.rglob("SHA256SUMS")).parent
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def test_an_artifact_without_a_log_loads(artifact: Artifact, tmp_path: Path) -> None:
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    dataset.save(Artifact(**(vars(artifact) | {"log": pd.DataFrame(), "state": {}})))
    assert dataset.load().log.empty


@pytest.mark.parametrize(
    "file",
    [
        "weights.safetensors",
        "spread.safetensors",
        "artifact.json",
        "training_log.csv",
        "SHA256SUMS",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "removed", "one bit"])
def test_a_damaged_artifact_is_named(
    artifact: Artifact, tmp_path: Path, file: str, damage: str
) -> None:
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    dataset.save(artifact)
    path = next(tmp_path.rglob(file))
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        bit = bytes([content[-9] ^ 1])
        path.write_bytes(content[:-20] if damage == "cut" else content[:-9] + bit + content[-8:])
    with pytest.raises(DatasetError, match=rf"{file}.*Run the training pipeline again"):
        dataset.load()


def test_a_spread_in_other_units_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    """Earlier offsets were in mg/dL: taken for logarithms they would make every quantile absurd."""
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    dataset.save(artifact)
    path = next(tmp_path.rglob("spread.safetensors"))
    arrays = load_file(path)
    arrays["offset_HQ"] = arrays.pop("log_offset_HQ")
    save_file(arrays, path)
    sums = path.with_name("SHA256SUMS")
    others = [line for line in sums.read_text().splitlines() if path.name not in line]
    sums.write_text("\n".join([*others, f"{sha256(path)}  {path.name}", ""]))
    with pytest.raises(DatasetError, match=r"another version.*Run the training pipeline again"):
        dataset.load()


def test_saving_leaves_no_half_artifact_behind(artifact: Artifact, tmp_path: Path) -> None:
    dataset = ArtifactDataset(filepath=str(tmp_path / "m"), version=Version(None, None))
    unsavable = Artifact(**(vars(artifact) | {"record": {"when": object()}}))
    with pytest.raises(DatasetError):
        dataset.save(unsavable)
    assert not list(tmp_path.rglob("artifact.json"))
    assert not dataset.exists()


def corpus_dataset(folder: Path, save: str | None = None, load: str | None = None) -> CorpusDataset:
    return CorpusDataset(filepath=str(folder / "corpus"), version=Version(load, save))


def test_corpus_loads_as_it_was_saved(corpus: Corpus, tmp_path: Path) -> None:
    assert not corpus_dataset(tmp_path).exists()
    corpus_dataset(tmp_path, save="1").save(corpus)
    loaded = corpus_dataset(tmp_path).load()
    assert loaded.fingerprint == corpus.fingerprint
    assert loaded.values_TC.dtype == np.float32
    assert loaded.made_from == corpus.made_from
    pd.testing.assert_frame_equal(loaded.people, corpus.people)


def test_an_unchanged_corpus_is_not_written_again(corpus: Corpus, tmp_path: Path) -> None:
    for version in "12":
        corpus_dataset(tmp_path, save=version).save(corpus)
    values = corpus.values_TC.copy()
    values[0, 0] += 1
    corpus_dataset(tmp_path, save="3").save(replace(corpus, values_TC=values))
    files = [tmp_path / "corpus" / version / "corpus" / "values_TC.npy" for version in "123"]
    assert files[0].samefile(files[1])
    assert not files[1].samefile(files[2])
    first = corpus_dataset(tmp_path, load="1").load()  # an old version stays as it was
    assert first.fingerprint == corpus.fingerprint
    assert corpus_dataset(tmp_path).load().fingerprint != corpus.fingerprint


@pytest.mark.parametrize("file", ["values_TC.npy", "people.csv", "made_from.json"])
def test_a_damaged_corpus_is_named(corpus: Corpus, tmp_path: Path, file: str) -> None:
    corpus_dataset(tmp_path, save="1").save(corpus)
    next(tmp_path.rglob(file)).write_text("")
    with pytest.raises(DatasetError, match=r"corpus'.*incomplete or damaged.*--load-versions"):
        corpus_dataset(tmp_path).load()
    corpus_dataset(tmp_path, save="2").save(corpus)  # shares nothing damaged
    assert corpus_dataset(tmp_path).load().fingerprint == corpus.fingerprint


def test_fingerprint_is_of_the_content(corpus: Corpus, tmp_path: Path) -> None:
    values = corpus.values_TC.copy()
    values[7, 0] += 1
    assert Corpus(**(vars_of(corpus) | {"values_TC": values})).fingerprint != corpus.fingerprint
    assert Corpus(**vars_of(corpus)).fingerprint == corpus.fingerprint


def vars_of(corpus: Corpus) -> dict:
    return {name: getattr(corpus, name) for name in Corpus.__dataclass_fields__}


def test_sources_are_named_by_words_or_by_a_list() -> None:
    options = {"simulated": {"subjects": 3, "days": 2}}
    for given in ("simulated", ["simulated"], "simulated simulated"):
        [part] = SourceDataset(sources=given, path="/nowhere", options=options).load()
        assert part.source == "simulated"
        assert part.read().frame["subject"].nunique() == 3


def test_secrets_reach_the_options_of_their_source_alone() -> None:
    secret = {"simulated": {"seed": 7}, "azt1d": {"url": "x"}}
    [part] = SourceDataset(sources="simulated", path="/nowhere", credentials=secret).load()
    assert part.options.seed == 7  # type: ignore[attr-defined]


def test_options_of_an_unknown_source_are_refused() -> None:
    dataset = SourceDataset(sources="simulated", path="/nowhere", options={"simulatd": {}})
    with pytest.raises(DatasetError) as raised:
        dataset.load()
    assert isinstance(raised.value.__cause__, InputError)
    assert "Did you mean 'simulated'?" in str(raised.value.__cause__)


def test_raw_sources_are_never_written() -> None:
    with pytest.raises(DatasetError, match="read, never written"):
        SourceDataset(sources="simulated", path="/nowhere").save({})  # type: ignore[arg-type]
