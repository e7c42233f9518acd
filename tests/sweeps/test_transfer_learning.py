import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.sweeps import OWN_GROUP
from nocturnal_kedro.series.splits import DAY
from nocturnal_kedro.sweeps import plan_cells, transfer_learning
from nocturnal_kedro.training.cells import Cell, Grounds
from tests.sweeps.invented import grounds_of, invent_data, nights_tested, people_in

MEMBERS = {
    "a": "a", "b": "b", "c": "c", "every 5 minutes": "ab", "every 15 minutes": "c",
}  # fmt: skip
LEARNT = MEMBERS | {"everybody": "abc", "all but a": "bc", "all but b": "ac", "all but c": "ab"}


@pytest.fixture(scope="module")
def cells(grounds: Grounds) -> list[Cell]:
    cells = plan_cells("transfer_learning", grounds, {"few_days": 3})
    return [cell for cell in cells if cell.seed == 4]


def sources(cell: Cell) -> str:
    """Whose days it learns from or is chosen by, by the first letters of their sources."""
    return "".join(sorted({name[0] for name in people_in(cell.data.splits, "train", "validation")}))


def test_a_group_learns_from_itself_and_is_chosen_by_itself(
    cells: list[Cell], grounds: Grounds
) -> None:
    starts = {cell.name: cell for cell in cells if cell.question == "zero-shot"}
    assert {name: sources(cell) for name, cell in starts.items()} == LEARNT
    for name, cell in starts.items():
        assert cell.against == OWN_GROUP
        assert cell.start is cell.tested_people is None
        assert nights_tested(cell.on_test).equals(nights_tested(grounds.data))
        splits, whole = cell.data.splits, grounds.data.splits
        own = splits["source"].isin(list(LEARNT[name]))
        assert splits[own].equals(whole[own])
        corpus = cell.data.corpus
        for rows in (cell.data.rows_around_anchor(None), cell.data.night_rows("validation")):
            assert len(rows)
            people = corpus.people.iloc[corpus.person_of(rows)]
            assert set(people["source"]) == set(LEARNT[name])


def test_each_target_is_reached_from_all_who_have_learnt_from_none_of_it(
    cells: list[Cell],
) -> None:
    for target, members in MEMBERS.items():
        others = {name for name, group in LEARNT.items() if not set(group) & set(members)}
        for shot, days in (("few-shot", "3 days of "), ("full", "")):
            own = [c for c in cells if c.question == shot and c.against == target]
            assert {c.name for c in own} == {
                f"{start}, then {days}{target}" for start in others
            } | ({f"3 days of {target}"} if shot == "few-shot" else set())
            for cell in own:
                assert sources(cell) == members
                assert {name[0] for name in cell.tested_people} == set(members)
                if cell.start:
                    assert cell.name.startswith(f"{cell.start.name}, then ")
                    assert "preset" not in cell.given
                train = cell.data.splits[cell.data.splits["split"] == "train"]
                days_of_each = (train["end"] - train["start"]) // DAY
                assert (days_of_each == 3).all() == (shot == "few-shot")
    full = next(cell for cell in cells if cell.name == "b, then a")
    assert full.data.splits.equals(next(cell for cell in cells if cell.name == "a").data.splits)
    plain = next(cell for cell in cells if cell.name == "3 days of a")
    assert plain.given == {"preset": "tiny"}


def test_groups_are_the_test_nights_of_their_people(grounds: Grounds) -> None:
    groups = transfer_learning.groups(grounds, transfer_learning.Options())
    nights = nights_tested(grounds.data)
    for name, members in MEMBERS.items():
        own = groups[groups["group"] == name]
        assert len(own) == nights["source"].isin(list(members)).sum() > 0
        assert "".join(sorted(set(own["source"]))) == members
    assert set(groups["group"]) == set(MEMBERS)


def test_shots_may_be_chosen(grounds: Grounds) -> None:
    cells = plan_cells("transfer_learning", grounds, {"shots": "zero-shot"})
    assert {cell.question for cell in cells} == {"baselines", "zero-shot"}


def test_two_sources_of_one_kind_of_sensor_are_two_groups_and_everybody() -> None:
    cells = plan_cells("transfer_learning", grounds_of(invent_data({"a": 4, "b": 4})), {})
    assert {cell.name for cell in cells if cell.question == "zero-shot"} == {"a", "b", "everybody"}


def test_one_group_has_nobody_to_transfer_to() -> None:
    with pytest.raises(InputError, match=r"one group of people alone, 'a'.*Give several sources"):
        plan_cells("transfer_learning", grounds_of(invent_data({"a": 4})), {})
