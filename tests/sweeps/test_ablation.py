import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.series.corpus import CHANNELS
from nocturnal_kedro.sweeps import ablation, plan_cells
from nocturnal_kedro.training.cells import Cell, Grounds
from tests.sweeps.invented import grounds_of, invent_data, nights_tested, people_in

OPTIONS = {"context_steps": (288, 400), "day_shares": (0.1, 0.5), "people_shares": (0.3, 0.6)}


@pytest.fixture(scope="module")
def cells(grounds: Grounds) -> list[Cell]:
    return plan_cells("ablation", grounds, OPTIONS)


def of(cells: list[Cell], question: str) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells if cell.question == question and cell.seed == 4}


def test_every_variant_and_what_it_is_compared_with(cells: list[Cell]) -> None:
    """A tenth of some days leaves no window, and activity is on nobody's record."""
    told = {
        question: [(c.name, c.number, c.against) for c in of(cells, question).values()]
        for question in ("covariates", "context", "days", "people", "sampling")
    }
    assert told == {
        "covariates": [
            ("glucose", 0, ""), ("+ insulin", 1, "glucose"), ("+ carbs", 2, "+ insulin"),
            ("+ clock", 3, "+ carbs"),
        ],
        "context": [
            ("24 h of context", 24, ""), ("33.3 h of context", 400 / 12, "24 h of context"),
        ],
        "days": [
            ("50 % of the days", 50, "100 % of the days"), ("100 % of the days", 100, ""),
        ],
        "people": [("2 people", 2, "6 people"), ("4 people", 4, "6 people"), ("6 people", 6, "")],
        "sampling": [
            ("readings every 5 min", 5, ""), ("readings every 15 min", 15, "readings every 5 min"),
        ],
    }  # fmt: skip
    given = [cell.given["covariates"] for cell in of(cells, "covariates").values()]
    assert given == [(), ("iob_u",), ("iob_u", "cob_g"), ("iob_u", "cob_g", "clock")]
    assert len(cells) == 2 + 2 * (4 + 2 + 2 + 3 + 2)


def test_all_cells_are_tested_on_the_same_nights(cells: list[Cell], grounds: Grounds) -> None:
    expected = nights_tested(grounds.data)
    assert set(expected["split"]) == {"temporal", "patient"}
    for cell in cells:
        assert cell.tested is cell.tested_people is cell.clock is None
        pd.testing.assert_frame_equal(nights_tested(cell.on_test), expected)


def test_each_variant_differs_in_one_respect(cells: list[Cell], grounds: Grounds) -> None:
    whole = grounds.data
    changed = {"context": "task", "days": "splits", "people": "splits", "sampling": "corpus"}
    for cell in cells:
        same = {
            "corpus": cell.data.corpus.fingerprint == whole.corpus.fingerprint,
            "splits": cell.data.splits.equals(whole.splits),
            "task": cell.data.task == whole.task,
            "given": cell.given in ({"preset": "tiny"}, {}),
        }
        differs = {name for name, is_same in same.items() if not is_same}
        if cell.question == "covariates":
            assert differs == {"given"}
        elif cell.against:
            assert differs == {changed[cell.question]}, cell
        else:
            assert not differs, cell
    trained = [people_in(cell.data.splits, "train") for cell in of(cells, "people").values()]
    assert [len(people) for people in trained] == [2, 4, 6]
    assert trained[0] < trained[1] < trained[2]


def test_what_cannot_be_varied_has_no_cells() -> None:
    """Where all sensors are slow there is nothing to thin; what a model has not is no rung."""
    asked = grounds_of(
        invent_data({"c": 4}, slow="c"), models={"ttm": {}, "chronos_bolt": {}}, seeds=(3,)
    )
    cells = plan_cells("ablation", asked, {"questions": "covariates sampling"})
    assert [(cell.model, cell.name) for cell in cells if cell.seed] == [
        ("ttm", "glucose"), ("ttm", "+ insulin"), ("ttm", "+ carbs"), ("ttm", "+ clock"),
        ("chronos_bolt", "glucose"),
    ]  # fmt: skip


def test_nights_of_known_insulin_are_told_apart(grounds: Grounds) -> None:
    """Of p0 nothing is on record."""
    groups = ablation.groups(grounds, ablation.Options())
    assert set(groups["group"]) == {"insulin known"}
    nights = nights_tested(grounds.data)
    assert "p0" in set(nights["subject"])
    known = nights[nights["subject"] != "p0"].drop(columns="split").reset_index(drop=True)
    pd.testing.assert_frame_equal(groups.drop(columns="group").reset_index(drop=True), known)
    assert not grounds.data.corpus.observed_TC[:288, CHANNELS.index("iob_u")].any()
    assert np.unique(groups["subject"]).tolist() == ["p1", "p2", "p3"]
