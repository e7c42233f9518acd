"""Models are registered once, found by what validation says, and nothing is lost between many."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.registry.tracking import Tracking, send_all
from nocturnal_kedro.training.artifact import load_artifact, save_artifact
from tests.registry.conftest import Invent, invent_artifact

GOOD, BAD = [20.0, 22, 24, 21, 25, 23, 19, 26], [30.0, 31, 36, 32, 34, 35, 28, 37]
SAME = [20.5, 21, 24.5, 20.5, 25.5, 22.5, 19.5, 25.5]  # as good as GOOD, by chance


def test_models_are_found_by_what_they_are_and_told_by_validation(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    invent({"ttm": BAD, "chronos2": GOOD})
    send()
    found = registry.find_models()
    assert found["model"].tolist() == ["chronos2", "ttm"]
    assert found["validation_rmse_mg_dl"].tolist() == [np.mean(GOOD), np.mean(BAD)]
    assert found["temporal_rmse_mg_dl"].tolist() == [np.mean(GOOD) + 10, np.mean(BAD) + 10]
    assert found["training_hours"].tolist() == [0.01, 0.01]
    # 22.5 and 32.9 on validation; on the test days 32.5 and 42.9, by which nothing is chosen.
    assert registry.find_models(max_rmse=32.6)["model"].tolist() == ["chronos2"]
    assert registry.find_models(max_crps=16.5)["model"].tolist() == ["chronos2", "ttm"]
    assert registry.find_models(model="ttm", strategy="from_scratch")["model"].tolist() == ["ttm"]
    assert len(registry.find_models(source="invented", data="ddd")) == 2
    assert registry.find_models(source="invente").empty
    with pytest.raises(InputError, match=r"unknown criterion 'stategy'.*Did you mean 'strategy'"):
        registry.find_models(stategy="fine_tune")


def test_what_was_sent_is_what_comes_back_after_the_original_is_gone(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    invent({"ttm": GOOD})
    send()
    [original] = tmp_path.glob("06_models/*/ttm/*/ttm")
    kept = load_artifact(original)
    for file in original.iterdir():
        file.unlink()
    found = registry.get_model("nocturnal_point/1")
    np.testing.assert_array_equal(found.state["weight"], kept.state["weight"])
    assert found.record == kept.record


@pytest.mark.parametrize(
    ("model_id", "told"),
    [
        ("ttm", "names no model. It is NAME/VERSION, e.g. nocturnal_point/3"),
        ("nocturnal_point/x", "names no model"),
        ("nocturnal_pint/1", "unknown registered model.*Did you mean 'nocturnal_point'"),
        ("nocturnal_point/9", "unknown version of 'nocturnal_point' '9'; known: 1"),
        ("nocturnal_point@champion", "has no champion; it has no alias"),
    ],
)
def test_a_wrong_name_is_one_clear_error(
    invent: Invent, send: Callable[[], str], registry: Registry, model_id: str, told: str
) -> None:
    invent({"ttm": GOOD})
    send()
    with pytest.raises(InputError, match=told):
        registry.find(model_id)


def register_all(uri: str, folders: list[Path]) -> list[str]:
    return [Registry(uri).register_model(folder, "many") for folder in folders]


def test_eight_processes_at_once_lose_and_double_nothing(tmp_path: Path, empty_store: Path) -> None:
    """With `empty_store`, what they import is there before they begin."""
    folders = [tmp_path / f"model{number}" for number in range(4)]
    for number, folder in enumerate(folders):
        save_artifact(invent_artifact("ttm", str(number), weight=number), folder)
    uri = default_uri(tmp_path)
    # Each registers all, beginning with another one; the store is not there yet.
    given = [(uri, folders[n % 4 :] + folders[: n % 4]) for n in range(8)]
    with multiprocessing.get_context("fork").Pool(8) as pool:
        told = pool.starmap(register_all, given, chunksize=1)
    agreed = {
        tuple(ids[-(n % 4) :] + ids[: -(n % 4)]) if n % 4 else tuple(ids)
        for n, ids in enumerate(told)
    }
    assert len(agreed) == 1  # on which is which
    found = Registry(uri).find_models()
    assert sorted(found["id"]) == sorted(*agreed) == [f"many/{n}" for n in range(1, 5)]
    weights = [Registry(uri).get_model(model_id).state["weight"][0] for model_id in agreed.pop()]
    assert weights == [0, 1, 2, 3]


def test_a_damaged_artifact_is_refused(registry: Registry, tmp_path: Path) -> None:
    save_artifact(invent_artifact("ttm", "k"), tmp_path / "model")
    with (tmp_path / "model" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="damaged: its SHA-256"):
        registry.register_model(tmp_path / "model", "any")
    assert registry.find_models().empty


def test_the_champion_moves_by_a_paired_test_on_validation_alone(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    invent({"ttm": BAD, "chronos2": GOOD, "tsmixer": SAME})
    send()
    ttm, chronos2, tsmixer = (
        registry.find_models(model=m)["id"][0] for m in ("ttm", "chronos2", "tsmixer")
    )
    assert "none to beat" in registry.make_champion(ttm)
    assert "40 validation nights of 8 people" in registry.make_champion(chronos2)
    found = registry.find_models()
    assert found.loc[found["champion"], "id"].tolist() == [chronos2]
    assert registry.get_model("nocturnal_point@champion").name == "chronos2"
    for other in (tsmixer, ttm):
        with pytest.raises(InputError, match=rf"{chronos2} stays the champion.*no better"):
            registry.make_champion(other)
    assert registry.get_model("nocturnal_point@champion").name == "chronos2"


def test_five_people_are_too_few_for_a_new_champion(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    invent({"ttm": BAD[:5], "chronos2": GOOD[:5]})
    send()
    registry.make_champion("nocturnal_point/1")
    with pytest.raises(InputError, match="too few people to tell models apart"):
        registry.make_champion("nocturnal_point/2")


def test_two_versions_are_compared_on_the_nights_that_both_were_scored_on(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    invent({"ttm": BAD}, day=1)
    invent({"ttm": GOOD}, day=2)
    invent({"ttm": GOOD}, day=3, data="e" * 64)
    send()
    table = registry.compare("nocturnal_point/2", "nocturnal_point/1").set_index(
        ["split", "measure"]
    )
    row = table.loc[("validation", "rmse_mg_dl")]
    assert row["difference"] == pytest.approx(np.mean(GOOD) - np.mean(BAD))
    assert row["low"] < row["difference"] < row["high"] < 0
    assert (row["people"], row["nights"], row["win_rate"]) == (8, 40, 1)
    assert row["wilcoxon_p"] == 2 / 2**8  # all eight on one side
    with pytest.raises(
        InputError, match=r"scored on no night in common.*eeeeeeeeeeee and dddddddddddd\."
    ):
        registry.compare("nocturnal_point/3", "nocturnal_point/1")


def test_what_a_report_cites_and_the_champion_are_not_deleted(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    folder = invent({"ttm": BAD, "chronos2": GOOD})
    send()
    registry.make_champion("nocturnal_point/1")
    with pytest.raises(InputError, match="is the champion of nocturnal_point"):
        registry.delete("nocturnal_point/1", tmp_path)
    with pytest.raises(InputError, match=f"cited by the report of {folder.name.replace('+', '.')}"):
        registry.delete("nocturnal_point/2", tmp_path)
    folder.rename(tmp_path / "sent-to-somebody")
    assert (
        registry.delete("nocturnal_point/2", tmp_path)
        == "nocturnal_point/2 is no longer registered."
    )
    assert registry.find_models()["id"].tolist() == ["nocturnal_point/1"]


def test_a_model_is_traced_to_raw_files(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    folder = invent({"ttm": GOOD})
    send()
    told = registry.trace("nocturnal_point/1")
    assert told["raw_files"] == {"invented/p.csv": "a" * 64}
    assert (told["folder"], told["commit"], told["data"]) == (folder.name, "c" * 40, "d" * 64)


def test_a_store_that_is_a_file_with_other_bytes_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(InputError, match=r"the tracking store sqlite:.*mlflow\.db"):
        Registry(default_uri(tmp_path)).find_models()
    assert "has every run" in send_all(tmp_path, Tracking())


def test_new_data_come_first_and_a_champion_of_old_ones_can_be_retired(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    invent({"ttm": GOOD}, day=1)
    send()
    invent({"ttm": BAD, "chronos2": GOOD}, day=2, data="0" * 64)
    send()
    assert registry.find_models()["id"].tolist() == [
        "nocturnal_point/3", "nocturnal_point/2", "nocturnal_point/1"
    ]  # fmt: skip
    registry.make_champion("nocturnal_point/1")
    with pytest.raises(InputError, match="scored on no night in common"):
        registry.make_champion("nocturnal_point/3")
    assert "has none now" in registry.retire_champion("nocturnal_point")
    assert "none to beat" in registry.make_champion("nocturnal_point/3")
    save_artifact(invent_artifact("ttm", "alone"), tmp_path / "alone")
    alone = registry.register_model(tmp_path / "alone", "legacy")
    with pytest.raises(InputError, match="no run has scored it"):
        registry.make_champion(alone)
