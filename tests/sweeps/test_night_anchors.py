import pandas as pd
import pytest

from nocturnal_kedro.sweeps import night_anchors, plan_cells
from nocturnal_kedro.training.cells import Cell, Grounds
from tests.sweeps.invented import nights_tested

KEY = ["source", "subject", "origin"]
OPTIONS = {"bedtimes": {"c": "22:00", "b": "22:35"}}


@pytest.fixture(scope="module")
def cells(grounds: Grounds) -> list[Cell]:
    return plan_cells("night_anchors", grounds, OPTIONS)


@pytest.fixture(scope="module")
def groups(grounds: Grounds) -> pd.DataFrame:
    return night_anchors.groups(grounds, night_anchors.Options(**OPTIONS))


def test_groups_are_told_apart_by_the_clock(groups: pd.DataFrame, grounds: Grounds) -> None:
    hours = {name: own["origin"].dt.strftime("%H:%M") for name, own in groups.groupby("group")}
    every = [f"{hour:02d}:00" for hour in (21, 22, 23, 0, 1, 2, 3, 4)]
    shown = ["from midnight", "from bedtime", "from every hour", *(f"from {h}" for h in every)]
    assert list(groups["group"].unique()) == shown
    assert set(hours["from midnight"]) == {"00:00"}
    assert set(hours["from every hour"]) == set(every)
    assert all(set(hours[f"from {hour}"]) == {hour} for hour in every)
    bedtime = groups[groups["group"] == "from bedtime"]
    clocks = bedtime["origin"].dt.strftime("%H:%M")
    assert set(clocks[bedtime["source"] == "c"]) == {"22:00"}
    assert set(clocks[bedtime["source"] == "b"]) == {"22:35"}
    of_a = clocks[bedtime["source"] == "a"]  # found by meals: several, in the evening
    assert of_a.nunique() > 1
    assert ((of_a >= "20:00") | (of_a < "02:00")).all()
    midnights = groups.loc[groups["group"] == "from 00:00", KEY]
    own = nights_tested(grounds.data)[KEY]
    pd.testing.assert_frame_equal(midnights.sort_values(KEY, ignore_index=True), own)


def test_anchors_are_compared_on_the_same_nights(groups: pd.DataFrame) -> None:
    """A night is from noon to noon; one without a bedtime is in no anchor's group."""
    nights = {
        name: {
            (row.source, row.subject, (row.origin - pd.Timedelta(hours=12)).date())
            for row in own.itertuples()
        }
        for name, own in groups.groupby("group")
    }
    same = nights["from midnight"]
    assert same == nights["from bedtime"]
    assert same >= nights["from every hour"]
    assert len(nights["from every hour"]) > 0.9 * len(same)
    assert same < nights["from 00:00"]  # some nights have no bedtime
    one_a_night = groups[groups["group"].isin(["from midnight", "from bedtime"])]
    assert one_a_night.groupby("group").size().nunique() == 1


def test_one_model_is_asked_from_every_anchor_once(cells: list[Cell], groups: pd.DataFrame) -> None:
    asked = groups[KEY].drop_duplicates().sort_values(KEY, ignore_index=True)
    assert len(asked) < len(groups)  # at 22:00 and at midnight it is asked for two of them
    for cell in cells:
        assert cell.clock == (0, 6)
        assert cell.data.task.anchor == "sliding"
        assert not cell.on_test.origins.duplicated(KEY).any()
        pd.testing.assert_frame_equal(nights_tested(cell.on_test)[KEY], asked)
        assert set(cell.on_test.origins["split"]) == {"train", "validation", "temporal", "patient"}
        assert cell.against == ("last_value" if cell.seed else "")
