"""Few-row exports as files, and the same tables in a real PostgreSQL."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.schema import SERIES, Readings
from nocturnal_kedro.sources import Part, find_parts, gluroo

GROUPS = """gid,timezone
g1,America/New_York
g2,Europe/London
"""
READINGS = """gid,date,bgl,trend,source
g1,2024-02-01 05:00:00+00,110,Flat,dexcom
g1,2024-02-01 05:05:00+00,115,Flat,dexcom
g1,2024-02-01T05:06:30.250Z,140,,libre
g2,2024-02-01 00:00:00+01:00,90,,dexcom
"""
MESSAGES = """gid,date,type,food_g,dose_units,dose_type,exercise_mins,text
g1,2024-02-01 05:02:00+00,food,45,,,,"toast, jam"
g1,2024-02-01 05:03:00+00,dose,,4.5,rapid,,
g1,2024-02-01 05:04:00+00,dose,10,1,Bolus,,
g1,2024-02-01 05:04:30+00,exercise,,,,30,run
g1,2024-02-01 05:05:00+00,note,0,0,,,hello
g2,2024-01-31 22:00:00+00,dose,,24,Long-acting,,
"""


def write(
    root: Path,
    groups: str | None = GROUPS,
    messages: str | None = MESSAGES,
    readings: str | None = READINGS,
) -> None:
    (root / "gluroo").mkdir(exist_ok=True)
    for name, text in (("groups", groups), ("messages", messages), ("readings", readings)):
        if text is not None:
            (root / "gluroo" / f"{name}.csv").write_text(text)


def parts(root: Path, **options: Any) -> list[Part]:
    return find_parts(["gluroo"], root, {"gluroo": options})


def read(root: Path, **options: Any) -> Readings:
    [part] = parts(root, **options)
    return part.read()


def counted(readings: Readings, effect: str) -> dict[str, int]:
    tally = readings.tally[readings.tally["effect"] == effect]
    return tally.groupby("reason")["rows"].sum().to_dict()


def said(readings: Readings, column: str, subject: str = "g1") -> dict[str, float]:
    rows = readings.frame[readings.frame["subject"] == subject].dropna(subset=column)
    return {
        f"{time:%H:%M:%S}": value for time, value in zip(rows["time"], rows[column], strict=True)
    }


def doses(*rows: str) -> str:
    return MESSAGES.splitlines()[0] + "\n" + "\n".join(rows) + "\n"


def test_reads_the_three_tables_in_local_time(tmp_path: Path) -> None:
    write(tmp_path)
    readings = read(tmp_path)
    assert said(readings, "glucose_mg_dl") == {"00:00:00": 110, "00:05:00": 115, "00:06:30": 140}
    assert said(readings, "glucose_mg_dl", "g2") == {"23:00:00": 90}
    assert said(readings, "carbs_g") == {"00:02:00": 45, "00:04:00": 10}
    assert said(readings, "bolus_u") == {"00:03:00": 4.5, "00:04:00": 1}
    long_acting = readings.frame.dropna(subset="basal_u_h")
    assert long_acting[["subject", "basal_u_h", "basal_minutes"]].to_numpy().tolist() == [
        ["g2", 1.0, 1440.0]
    ]
    assert counted(readings, "in") == {"rows in readings": 4, "rows in messages": 6}
    assert counted(readings, "dropped") == {
        "exercise, which is not read": 1,
        "messages without food or dose": 1,
        "long-acting doses, spread over 24 h as a basal rate": 1,
    }
    assert counted(readings, "added") == {"basal rates of long-acting doses": 1}


def test_goes_onto_the_grid(tmp_path: Path) -> None:
    write(tmp_path)
    series, _ = build_series({"gluroo": read(tmp_path)}, GridOptions())
    SERIES.validate(series)
    g1 = series[series["subject"] == "g1"]
    assert g1["time"].iloc[0] == pd.Timestamp("2024-02-01 00:00")
    assert g1["glucose_mg_dl"].tolist() == [110, 127.5]  # two sensors within a slot
    assert g1["bolus_u"].sum() == 5.5


def test_rows_that_stand_twice_count_once(tmp_path: Path) -> None:
    twice = MESSAGES + MESSAGES.splitlines()[2] + "\n"
    other_source = "g1,2024-02-01 05:00:00+00,110,,share\n"  # the same reading by another way
    other_value = "g1,2024-02-01 05:00:00+00,111,,share\n"
    write(tmp_path, messages=twice, readings=READINGS + other_source + other_value)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].sum() == 5.5
    dropped = counted(readings, "dropped")
    assert dropped["messages that stand twice"] == 1
    assert dropped["readings that stand twice"] == 1
    assert len(readings.frame["glucose_mg_dl"].dropna()) == 5


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path)
    expected = read(tmp_path)

    def turned(text: str) -> str:
        head, *rows = text.splitlines()
        return "\n".join([head, *rows[::-1]]) + "\n"

    write(tmp_path, turned(GROUPS), turned(MESSAGES), turned(READINGS))
    pd.testing.assert_frame_equal(read(tmp_path).frame, expected.frame)


def test_long_acting_doses_that_overlap_add_up(tmp_path: Path) -> None:
    messages = doses(
        "g1,2024-02-01 12:00:00+00,dose,,24,basal,,",
        "g1,2024-02-02 10:00:00+00,dose,15,12,Long_Acting,,",  # two hours early, with food
        "g1,2024-02-04 12:00:00+00,dose,,24,long,,",  # a day was left out: no rate, not 0
    )
    write(tmp_path, messages=messages)
    readings = read(tmp_path)
    rates = readings.frame.dropna(subset="basal_u_h")
    assert [
        (f"{time:%d %H:%M}", rate, minutes)
        for time, rate, minutes in zip(
            rates["time"], rates["basal_u_h"], rates["basal_minutes"], strict=True
        )
    ] == [
        ("01 07:00", 1, 22 * 60), ("02 05:00", 1.5, 120), ("02 07:00", 0.5, 22 * 60),
        ("04 07:00", 1, 24 * 60),
    ]  # fmt: skip
    assert said(readings, "carbs_g") == {"05:00:00": 15}
    assert readings.frame["bolus_u"].isna().all()
    assert counted(readings, "changed") == {
        "long-acting doses, spread over 24 h as a basal rate": 1
    }


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), max_size=8))
def test_long_acting_units_are_conserved(given_doses: list[tuple[int, int]]) -> None:
    spread = gluroo._spread(
        pd.DataFrame(
            {
                "subject": "g",
                "time": pd.Timestamp("2024-02-01")
                + pd.to_timedelta([hour for hour, _ in given_doses], unit="h"),
                "dose": [float(units) for _, units in given_doses],
            }
        )
    )
    units = (spread["basal_u_h"] * spread["basal_minutes"] / 60).sum()
    assert units == pytest.approx(sum(units for _, units in given_doses))
    assert (spread["basal_u_h"] > 0).all()
    ends = spread["time"] + pd.to_timedelta(spread["basal_minutes"], unit="min")
    assert (ends.shift(1).dropna() <= spread["time"].iloc[1:]).all()  # no two at one time


def test_a_dose_does_not_know_of_a_later_one() -> None:
    def rates(hours: list[int]) -> pd.DataFrame:
        times = pd.Timestamp("2024-02-01") + pd.to_timedelta(hours, unit="h")
        spread = gluroo._spread(pd.DataFrame({"subject": "g", "time": times, "dose": 24.0}))
        return spread.loc[spread["time"] < "2024-02-01 20:00", ["time", "basal_u_h"]]

    pd.testing.assert_frame_equal(rates([0]), rates([0, 20]))


def test_doses_of_unknown_type_are_counted_by_name(tmp_path: Path) -> None:
    messages = doses(
        "g1,2024-02-01 12:00:00+00,dose,,5,inhaled,,",
        "g1,2024-02-01 12:05:00+00,dose,20,5,inhaled,15,",
        "g1,2024-02-01 12:10:00+00,dose,,5,,,",
    )
    write(tmp_path, messages=messages)
    readings = read(tmp_path)
    assert readings.frame["bolus_u"].isna().all()
    assert readings.frame["carbs_g"].sum() == 20
    assert counted(readings, "dropped") == {
        "doses whose type is inhaled": 1,
        "doses whose type is none": 1,
    }
    assert counted(readings, "changed") == {"dose left out, its type is inhaled": 1}
    assert counted(readings, "noted") == {"exercise, which is not read": 1}


def test_a_clock_that_is_put_back(tmp_path: Path) -> None:
    minutes = pd.date_range("2023-10-29", periods=36, freq="5min")  # London: 01:00 to 01:55 twice
    rows = [f"g2,{time}+00,{100 + k}" for k, time in enumerate(minutes)]
    messages = doses(
        "g2,2023-10-29 01:10:00+00,dose,,5,rapid,,", "g2,2023-10-28 20:00:00+00,dose,,24,basal,,"
    )
    write(tmp_path, messages=messages, readings="\n".join(["gid,date,bgl", *rows]) + "\n")
    readings = read(tmp_path)
    glucose = readings.frame.dropna(subset="glucose_mg_dl")
    assert glucose["time"].diff().dropna().eq(pd.Timedelta(minutes=5)).all()
    assert len(glucose) == 24
    assert said(readings, "bolus_u", "g2") == {"02:00:00": 5}
    assert counted(readings, "dropped")["glucose in the hour that a clock change repeats"] == 12
    assert counted(readings, "added") == {
        "basal rates of long-acting doses": 1,
        "basal rates split at a clock change": 1,
    }
    rates = readings.frame.dropna(subset="basal_u_h")
    units = (rates["basal_u_h"] * rates["basal_minutes"] / 60).sum()
    assert units == pytest.approx(23)  # the repeated hour has no place


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("gid,timezone\ng1,America/New_York\n", r"'timezone': group 'g2' has none.*default_zone"),
        (GROUPS.replace("Europe/London", ""), r"'timezone': group 'g2' has none.*default_zone"),
        (GROUPS.replace("Europe/London", "BST"), r"group 'g2': unknown .*'BST'.*default_zone"),
        (GROUPS + "g2,Europe/Paris\n", r"group 'g2' has several time zones"),
    ],
)
def test_a_group_without_a_zone_is_named(tmp_path: Path, groups: str, message: str) -> None:
    write(tmp_path, groups=groups)
    with pytest.raises(InputError, match=rf"groups.csv', column {message}|{message}"):
        read(tmp_path)


def test_a_default_zone_is_counted(tmp_path: Path) -> None:
    write(tmp_path, groups="gid,timezone\ng1,America/New_York\n")
    readings = read(tmp_path, default_zone="Europe/Berlin")
    assert said(readings, "glucose_mg_dl", "g2") == {"00:00:00": 90}
    assert counted(readings, "noted") == {
        "rows of a group without a usable timezone, Europe/Berlin taken": 2
    }
    with pytest.raises(InputError, match=r"option 'default_zone': unknown time zone 'Berlin'"):
        read(tmp_path, default_zone="Berlin")


@pytest.mark.parametrize("name", ["groups", "messages", "readings"])
def test_an_absent_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / "gluroo" / f"{name}.csv").unlink()
    with pytest.raises(InputError, match=rf"no 'gluroo/{name}.csv' under .*your export of Gluroo"):
        parts(tmp_path)


@pytest.mark.parametrize(
    ("table", "before", "after", "message"),
    [
        ("readings", "bgl", "sgv", r"readings.csv': no column 'bgl'; it has: gid, date, sgv"),
        ("messages", "food_g", "food", r"messages.csv': no column 'food_g'"),
        ("groups", "timezone", "tz", r"groups.csv': no column 'timezone'"),
        ("readings", "115", "much", r"readings.csv', column 'bgl', row 3: 'much' is no number"),
        ("messages", "4.5", "4;5", r"column 'dose_units', row 3: '4;5' is no number"),
        ("readings", "2024-02-01 05:05:00+00", "noon", r"column 'date', row 3: 'noon' is no time"),
        ("readings", "05:05:00+00", "05:05:00", r"row 3: '.*' names no time zone .*timestamptz"),
        ("readings", "g2,", ",", r"readings.csv', column 'gid', row 5: empty \(1 such cells\)"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, table: str, before: str, after: str, message: str
) -> None:
    write(tmp_path)
    path = tmp_path / "gluroo" / f"{table}.csv"
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


# The database ------------------------------------------------------------------------------

PASSWORD = "s3cret/@:?#word"


def address(port: int, password: str = PASSWORD, name: str = "postgres") -> str:
    return f"postgresql://gluroo:{quote(password, safe='')}@127.0.0.1:{port}/{name}"


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    beside = [Path(found).resolve()] if found else []
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return next((path.parent for path in [*beside, *sorted(debian)]), None)


class Server:
    """A PostgreSQL of its own in a folder of its own, for the length of this module."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries = folder, binaries
        self.user = None
        if os.getuid() == 0:  # which PostgreSQL refuses
            known = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in known else "nobody"
            shutil.chown(folder, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        self.call(
            "initdb", "-D", f"{folder}/data", "-U", "gluroo", "--auth=scram-sha-256", "-N",
            f"--pwfile={folder}/password",
        )  # fmt: skip
        self.call(
            "pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "start", "-o",
            f"-p {self.port} -h 127.0.0.1 -k {folder} -F",
        )  # fmt: skip

    def call(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        subprocess.run(
            command, user=self.user, extra_groups=[] if self.user else None, cwd=self.folder,
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        self.call("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    binaries = _binaries()
    if binaries is None and not os.environ.get("CI"):
        pytest.skip("no PostgreSQL server (initdb) on this machine")
    assert binaries is not None, "no PostgreSQL server (initdb): see .ci/run"
    folder = Path(tempfile.mkdtemp(prefix="gluroo-"))
    try:
        started = Server(folder, binaries)
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database(server: Server) -> Iterator[Any]:
    """An open connection to the server, with the three tables as the app might hold them."""
    import psycopg

    with psycopg.connect(address(server.port), autocommit=True) as connection:
        connection.execute(
            "DROP SCHEMA IF EXISTS app CASCADE; CREATE SCHEMA app;"
            "CREATE TABLE app.groups (gid text, timezone text, name text);"
            "CREATE TABLE app.messages (gid text, date timestamptz, type text, food_g real,"
            " dose_units double precision, dose_type text, exercise_mins int, text text);"
            "CREATE TABLE app.readings (gid text, date timestamptz, bgl numeric, trend text,"
            " source text)"
        )
        for name, text in (("groups", GROUPS), ("messages", MESSAGES), ("readings", READINGS)):
            head, *rows = text.splitlines()
            with connection.cursor().copy(
                f"COPY app.{name} ({head}) FROM STDIN (FORMAT csv)"
            ) as copy:
                copy.write("\n".join(rows[::-1]) + "\n")
        yield connection


TABLES = {name: f"app.{name}" for name in ("groups", "messages", "readings")}


@pytest.mark.slow
def test_files_and_database_give_the_identical_frame(
    tmp_path: Path, server: Server, database: Any
) -> None:
    write(tmp_path)
    files = read(tmp_path)
    database.execute("SET timezone TO 'Asia/Kathmandu'")
    database.execute("ALTER ROLE gluroo SET timezone TO 'Asia/Kathmandu'")
    database.execute("ALTER ROLE gluroo SET datestyle TO 'German'")
    [part] = parts(tmp_path, url=address(server.port), tables=TABLES)
    assert part.files == ()
    tables = part.read()
    pd.testing.assert_frame_equal(tables.frame, files.frame)
    key = ["subject", "effect", "reason"]
    pd.testing.assert_frame_equal(
        tables.tally.sort_values(key, ignore_index=True),
        files.tally.sort_values(key, ignore_index=True),
    )


@pytest.mark.slow
def test_many_rows_come_in_chunks(tmp_path: Path, server: Server, database: Any) -> None:
    database.execute(
        "INSERT INTO app.readings (gid, date, bgl) SELECT 'g1',"
        " '2023-01-01'::timestamptz + n * interval '1 minute', 100 + n % 50"
        " FROM generate_series(1, 100000) n"
    )
    [part] = parts(tmp_path, url=address(server.port), tables=TABLES)
    assert part.read().frame["glucose_mg_dl"].notna().sum() > 100_000 - 61


@pytest.mark.slow
def test_the_stamp_tells_one_state_from_another(server: Server, database: Any) -> None:
    options = gluroo.Options(url=address(server.port), tables=TABLES)
    stamps = [gluroo.stamp(options)]
    assert "readings: 4 2024-02-01 05:06:30.25" in stamps[0]
    assert gluroo.stamp(options) == stamps[0]
    for change in (
        "UPDATE app.readings SET bgl = bgl + 1 WHERE gid = 'g2'",  # neither number nor date
        "DELETE FROM app.messages WHERE type = 'note'",
        "UPDATE app.groups SET timezone = 'Europe/Paris' WHERE gid = 'g2'",
    ):
        database.execute(change)
        stamps.append(gluroo.stamp(options))
    assert len(set(stamps)) == 4
    database.execute("UPDATE app.groups SET name = 'Anna'")  # what is not read
    assert gluroo.stamp(options) == stamps[-1]
    assert gluroo.stamp(gluroo.Options()) == ""


@pytest.mark.slow
def test_an_address_that_the_client_refuses_is_not_shown(server: Server) -> None:
    options = gluroo.Options(url=address(server.port) + "?nonsense=1")
    with pytest.raises(InputError, match=r"'url': no address") as told:
        gluroo.stamp(options)
    _require_silence("".join(traceback.format_exception(told.value)))


@pytest.mark.slow
def test_nothing_is_written(server: Server, database: Any) -> None:
    options = gluroo.Options(url=address(server.port))
    assert options.url is not None
    with (
        pytest.raises(InputError, match=r"read-only transaction"),
        gluroo._connected(options.url) as opened,
    ):
        opened.connection.execute("DELETE FROM app.readings")


@pytest.mark.slow
def test_errors_of_the_database_tell_no_password(
    tmp_path: Path, server: Server, database: Any
) -> None:
    database.execute("CREATE VIEW app.lacking AS SELECT gid, date FROM app.readings")
    right, wrong = address(server.port), address(server.port, "no/t@it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = address(probe.getsockname()[1])
    given: list[tuple[dict[str, Any], str]] = [
        ({"url": wrong}, r"password authentication failed"),
        ({"url": silent}, r"refused"),
        ({"url": address(server.port, name="elsewhere")}, r"\"elsewhere\" does not exist"),
        ({"url": right}, r"\"groups\" does not exist"),
        (
            {"url": right, "tables": TABLES | {"readings": "app.lacking"}},
            r"table 'app.lacking': no column 'bgl'; it has: gid, date",
        ),
    ]
    for options, message in given:
        with pytest.raises(InputError, match=message) as told:
            parts(tmp_path, **options)
        _require_silence("".join(traceback.format_exception(told.value)), "no/t@it")


def _require_silence(text: str, *more: str) -> None:
    for secret in (PASSWORD, *more):
        assert secret not in text
        assert quote(secret, safe="") not in text


@pytest.mark.parametrize(
    "url",
    [
        "", "gluroo", "sqlite:///a.db", f"postgresql://gluroo:{PASSWORD}@host/app",
        "postgresql://gluroo:half@of/it@host/app", "postgresql://gluroo:half/of@host/app",
        "postgresql://gluroo:half?of@host/app", "host=h password=secret",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"'url': no address of a PostgreSQL database") as told:
        parts(tmp_path, url=url)
    text = "".join(traceback.format_exception(told.value))
    _require_silence(text, "half", "of@", "secret")


def test_an_absent_client_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r'pip install "nocturnal-kedro\[postgres\]"'):
        parts(tmp_path, url=address(5432))


def test_a_url_is_in_no_record() -> None:
    options = gluroo.Options(url=address(5432))
    part = Part("gluroo", (), options, stamp="state")
    shown = [
        str(options),
        repr(part),
        str(options.model_dump(mode="json")),
        str(part.made_from(GridOptions())),
    ]
    _require_silence("".join(shown))
    assert part.made_from(GridOptions())["stamp"] == "state"


@pytest.mark.parametrize(
    "options", [{"tables": {"reading": "x"}}, {"tables": {"groups": ""}}, {"zone": 1}]
)
def test_unusable_options(tmp_path: Path, options: dict[str, Any]) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"options of source 'gluroo'"):
        parts(tmp_path, **options)


def test_levels_are_numbers(tmp_path: Path) -> None:
    write(tmp_path, readings=READINGS.replace("110", "LOW"))
    frame = read(tmp_path).frame
    assert frame["glucose_mg_dl"].dtype == np.float64
    assert 39.0 in frame["glucose_mg_dl"].tolist()
