"""Gluroo: a private export of the diabetes app, as three CSV files or the same PostgreSQL tables.

Times are moments; each group (a person and those who care) has a time zone, and everything is
brought to its local time. What the reader mends, each counted in the tally: rows that stand
twice, long-acting doses, which become a basal rate over 24 hours, doses of no known type.

Sensors of 1, 3 and 5 minutes stand side by side, several of one person too: all readings are
kept, and the grid averages them. Both ways in give the identical frame, whatever the order of
rows: a database table comes as the CSV that PostgreSQL itself writes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, SecretStr

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    READING_COLUMNS,
    Counted,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._clock import Clock, Times, iso_times, moments, to_local, zone_clock
from nocturnal_kedro.sources._raw import RawTable, read_table, require_files

TITLE = "your export of Gluroo (private: nothing to download)"
FOLDER = "gluroo"
REQUIRED = {
    "groups": ("gid", "timezone"),
    "messages": ("gid", "date", "type", "food_g", "dose_units", "dose_type"),
    "readings": ("gid", "date", "bgl"),
}
OPTIONAL = {"groups": (), "messages": ("exercise_mins",), "readings": ()}

# Types of a dose, in small letters, with hyphens.
RAPID = ("rapid", "rapid-acting", "bolus")
LONG_ACTING = ("basal", "long", "long-acting")
LONG_ACTING_HOURS = 24.0

ADDRESS = r"postgres(ql)?://([^@/?:\s]+(:[^@/?\s]*)?@)?[^@?\s]*(\?[^@\s]*)?$"
CONNECT_S = 10


class Tables(BaseModel, extra="forbid", frozen=True):
    """What the tables are called in the database, `schema.table` where they lie in a schema."""

    groups: str = Field(default="groups", min_length=1)
    messages: str = Field(default="messages", min_length=1)
    readings: str = Field(default="readings", min_length=1)


class Options(BaseModel, extra="forbid", frozen=True):
    """Where the tables are; without a url they are files."""

    url: SecretStr | None = None  # postgresql://user:password@host/database; from credentials
    tables: Tables = Tables()
    default_zone: str | None = None  # IANA; of groups without a usable timezone


def find(root: Path, options: Options) -> list[Files]:
    """The three files, or none where a url is given; raises `InputError` where one is absent."""
    if options.url is not None:
        return [()]
    return [
        tuple(
            file
            for table in REQUIRED
            for file in require_files("gluroo", root, f"{FOLDER}/{table}.csv", TITLE)
        )
    ]


def stamp(options: Options) -> str:
    """What tells one state of the database from another; nothing for files."""
    if options.url is None:
        return ""
    with _connected(options.url) as database:
        return " ".join(
            f"{name}: {_state(database, name, getattr(options.tables, name))}" for name in REQUIRED
        )


def read(files: Files, options: Options) -> Readings:
    """Read everybody; raises `InputError` on an unusable cell, time zone or connection."""
    if options.url is None:
        tables = {
            name: read_table("gluroo", file, REQUIRED[name], TITLE, numeric=("bgl",))
            for name, file in zip(REQUIRED, files, strict=True)
        }
    else:
        with _connected(options.url) as database:
            tables = {
                name: _copied(database, name, getattr(options.tables, name)) for name in REQUIRED
            }
    entries: list[Counted] = []
    readings = _readings(tables["readings"], entries)
    messages, long_acting = _messages(tables["messages"], entries)
    frame = pd.concat([readings, messages, long_acting], ignore_index=True)
    frame = frame.sort_values(["subject", "time", *READING_COLUMNS], ignore_index=True)
    clocks = _clocks(tables["groups"], frame, options.default_zone, entries)
    frame, on_the_way = to_local(frame, clocks)
    return Readings(frame, make_tally("read", [*entries, *on_the_way]))


def _readings(table: RawTable, entries: list[Counted]) -> pd.DataFrame:
    frame = readings_frame(
        {
            "subject": _gids(table, "readings", entries),
            "time": _moments(table),
            "glucose_mg_dl": table.glucose("bgl"),
        }
    )
    return _once(frame, frame.duplicated(), "readings that stand twice", entries)


def _messages(table: RawTable, entries: list[Counted]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boluses and carbs at their times, and the rates that long-acting doses come to (UTC)."""
    gid, time = _gids(table, "messages", entries), _moments(table)
    said = pd.DataFrame({"subject": gid, "time": time})
    said["carbs_g"], said["dose"] = table.numbers("food_g"), table.numbers("dose_units")
    for column in ("type", "dose_type"):
        texts = table.frame[column].astype("string").fillna("").str.strip().str.lower()
        said[column] = texts.str.replace(r"[\s_]+", "-", regex=True).astype(object).to_numpy()
    said["exercise"] = said["type"].eq("exercise")
    if "exercise_mins" in table.frame:
        said["exercise"] |= table.numbers("exercise_mins") > 0
    said = _once(said, said.duplicated(), "messages that stand twice", entries)

    # A 0 says that nothing was eaten or given.
    dosed, eaten = said["dose"] > 0, said["carbs_g"] > 0
    rapid = dosed & said["dose_type"].isin(RAPID)
    long_acting = dosed & said["dose_type"].isin(LONG_ACTING)
    unknown = dosed & ~rapid & ~long_acting
    kept = eaten | rapid
    what = said["dose_type"].replace("", "none")
    _count(said[unknown & kept], "changed", "dose left out, its type is " + what, entries)
    _count(said[unknown & ~kept], "dropped", "doses whose type is " + what, entries)
    spread = "long-acting doses, spread over 24 h as a basal rate"
    _count(said[long_acting & ~kept], "dropped", spread, entries)
    _count(said[long_acting & kept], "changed", spread, entries)
    nothing = ~dosed & ~eaten
    _count(said[nothing & said["exercise"]], "dropped", "exercise, which is not read", entries)
    _count(said[kept & said["exercise"]], "noted", "exercise, which is not read", entries)
    _count(said[nothing & ~said["exercise"]], "dropped", "messages without food or dose", entries)

    frame = said[kept].assign(
        bolus_u=said["dose"].where(rapid), carbs_g=said["carbs_g"].where(eaten)
    )
    untimed = long_acting & said["time"].isna()
    _count(said[untimed], "noted", "long-acting doses without a time, left out", entries)
    rates = _spread(said[long_acting & ~untimed])
    _count(rates, "added", "basal rates of long-acting doses", entries)
    return readings_frame(dict(frame.items())), rates


def _spread(doses: pd.DataFrame) -> pd.DataFrame:
    """Rates of doses that each flow evenly over 24 hours; where they overlap they add up.

    A rate is told from each dose and each end on, so that none knows of a later dose.
    """
    lasts = pd.Timedelta(hours=LONG_ACTING_HOURS)
    begins = pd.DataFrame({"subject": doses["subject"], "time": doses["time"], "running": 1})
    begins["units"] = doses["dose"]
    ends = begins.assign(time=begins["time"] + lasts, running=-1, units=-begins["units"])
    steps = pd.concat([begins, ends]).groupby(["subject", "time"], as_index=False).sum()

    steps[["running", "units"]] = steps.groupby("subject")[["running", "units"]].cumsum()
    steps["until"] = steps.groupby("subject")["time"].shift(-1)
    steps = steps[steps["running"] > 0]
    return readings_frame(
        {
            "subject": steps["subject"],
            "time": steps["time"],
            "basal_u_h": steps["units"] / LONG_ACTING_HOURS,
            "basal_minutes": (steps["until"] - steps["time"]) / pd.Timedelta(minutes=1),
        }
    )


def _clocks(
    groups: RawTable, frame: pd.DataFrame, default_zone: str | None, entries: list[Counted]
) -> dict[str, Clock]:
    """The clock of every group that has rows; raises `InputError` where none can be told."""
    gids = groups.frame["gid"].astype("string").str.strip()
    zones = groups.frame["timezone"].astype("string").str.strip().replace("", pd.NA)
    pairs = pd.DataFrame({"gid": gids, "zone": zones}).dropna().drop_duplicates()
    twice = pairs[pairs["gid"].duplicated()]
    if len(twice):
        raise InputError(
            f"{groups.where('timezone')}: group '{twice['gid'].iloc[0]}' has several time zones "
            f"({len(twice)} such groups). Keep the row of the one that it lives in."
        )
    by_gid = dict(zip(pairs["gid"], pairs["zone"], strict=True))
    clocks: dict[str, Clock] = {}
    for subject, at in frame.groupby("subject").indices.items():
        utc = frame["time"].to_numpy()[at]
        zone = by_gid.get(subject)
        try:
            if zone is None:
                raise InputError(f"{groups.where('timezone')}: group '{subject}' has none.")
            clocks[subject] = zone_clock(
                f"{groups.where('timezone')}, group '{subject}'", zone, utc
            )
        except InputError as error:
            if default_zone is None:
                raise InputError(
                    f"{error} Give it there, or give the option default_zone for all such groups."
                ) from error
            where = "source 'gluroo', option 'default_zone'"
            clocks[subject] = zone_clock(where, default_zone, utc)
            reason = f"rows of a group without a usable timezone, {default_zone} taken"
            entries.append((subject, "noted", reason, len(at)))
    return clocks


def _gids(table: RawTable, name: str, entries: list[Counted]) -> Any:
    """The group of each row; raises `InputError` on an empty one."""
    gids = table.frame["gid"].astype("string").fillna("").str.strip().astype(object)
    nameless = (gids == "").to_numpy()
    if nameless.any():
        row = table.frame.index[int(np.flatnonzero(nameless)[0])] + 2
        raise InputError(
            f"{table.where('gid')}, row {row}: empty ({int(nameless.sum())} such cells). Every "
            f"row belongs to a group: export the table again."
        )
    counts = gids.value_counts()
    entries += [(str(gid), "in", f"rows in {name}", int(n)) for gid, n in counts.items()]
    return gids.to_numpy()


def _moments(table: RawTable) -> Times:
    """The column `date` in UTC; raises `InputError` where a time names no offset."""
    shown, minutes = iso_times(table, "date")
    wrong = ~np.isnat(shown) & np.isnan(minutes)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table.where('date')}, row {table.frame.index[row] + 2}: "
            f"'{table.frame['date'].iloc[row]}' names no time zone ({int(wrong.sum())} such "
            f"cells). Export times with their offset, like '2023-12-31 23:59:58+00' (PostgreSQL: "
            f"timestamptz)."
        )
    return moments(shown, minutes)


def _once(
    frame: pd.DataFrame, repeated: pd.Series, reason: str, entries: list[Counted]
) -> pd.DataFrame:
    _count(frame[repeated], "dropped", reason, entries)
    return frame[~repeated].reset_index(drop=True)


def _count(
    rows: pd.DataFrame, effect: str, reason: str | pd.Series, entries: list[Counted]
) -> None:
    """An entry for each subject of `rows`, and each reason where these differ by row."""
    counts = rows.assign(reason=reason).groupby(["subject", "reason"]).size()
    entries += [(str(subject), effect, str(why), int(n)) for (subject, why), n in counts.items()]


@dataclass(frozen=True)
class _Database:
    """An open connection, and the one module that may be absent."""

    psycopg: Any
    connection: Any


@contextmanager
def _connected(url: SecretStr) -> Iterator[_Database]:
    """One unchanging view of the database, read only; its errors become `InputError`.

    No message may hold the password, and no traceback the message that did.
    """
    address = url.get_secret_value()
    unusable = InputError(
        "source 'gluroo', option 'url': no address of a PostgreSQL database. Write "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, in the password %40 for @, %2F for /, "
        "%3F for ?. (The value is not shown: it may hold a password.)"
    )
    # Of an address that can be taken apart in two ways, a message might tell half a password.
    if not re.match(ADDRESS, address):
        raise unusable
    try:
        psycopg = importlib.import_module("psycopg")
    except ImportError as error:
        raise InputError(
            "source 'gluroo': a url needs the PostgreSQL client psycopg, which is not installed. "
            'Install it: pip install "nocturnal-kedro[postgres]".'
        ) from error
    try:
        known = psycopg.conninfo.conninfo_to_dict(address)
    except psycopg.Error:
        raise unusable from None
    wait = {} if "connect_timeout" in known else {"connect_timeout": CONNECT_S}
    try:
        with psycopg.connect(address, **wait) as connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            for setting in ("TIME ZONE 'UTC'", "DATESTYLE TO 'ISO'", "CLIENT_ENCODING TO 'UTF8'"):
                connection.execute(f"SET {setting}")
            yield _Database(psycopg, connection)
    except psycopg.Error as error:
        raise InputError(
            f"source 'gluroo', option 'url': {_without(str(error), address, known)}. Look at the "
            f"address, the names under tables, and whether this user may read them."
        ) from None


def _without(message: str, address: str, known: dict[str, Any]) -> str:
    """A message of the client on one line, without what it must not tell."""
    for secret in (address, known.get("password")):
        message = message.replace(str(secret), "***") if secret else message
    return " ".join(message.split()).rstrip(".")


def _state(database: _Database, name: str, table: str) -> str:
    """Number of rows, newest date, and a sum over the content that a changed row changes."""
    sql = database.psycopg.sql
    cells = sql.SQL(", ").join(map(sql.Identifier, _columns(database, name, table)))
    newest = sql.SQL("max(date)" if "date" in REQUIRED[name] else "''")
    digest = "sum(('x' || substr(md5(row({})::text), 1, 8))::bit(32)::bigint)"
    query = sql.SQL("SELECT count(*), {}, " + digest + " FROM {}")
    query = query.format(newest, cells, _identifier(sql, table))
    return " ".join(map(str, database.connection.execute(query).fetchone()))


def _copied(database: _Database, name: str, table: str) -> RawTable:
    """A table through a temporary CSV, which holds no more than the columns that are read."""
    sql = database.psycopg.sql
    cells = sql.SQL(", ").join(map(sql.Identifier, _columns(database, name, table)))
    query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT csv, HEADER)")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        with (
            path.open("wb") as stream,
            database.connection.cursor() as cursor,
            cursor.copy(query.format(cells, _identifier(sql, table))) as blocks,
        ):
            for block in blocks:
                stream.write(block)
        read = read_table("gluroo", path, REQUIRED[name], TITLE, numeric=("bgl",))
    return replace(read, path=Path(table))


def _columns(database: _Database, name: str, table: str) -> list[str]:
    """The columns of a table that are read; raises `InputError` where one lacks."""
    sql = database.psycopg.sql
    query = sql.SQL("SELECT * FROM {} LIMIT 0").format(_identifier(sql, table))
    there = [column.name for column in database.connection.execute(query).description]
    lacking = [column for column in REQUIRED[name] if column not in there]
    if lacking:
        raise InputError(
            f"source 'gluroo', table '{table}': no column {', '.join(map(repr, lacking))}; it "
            f"has: {', '.join(there)}. Give the right tables' names in the option tables."
        )
    return [*REQUIRED[name], *(column for column in OPTIONAL[name] if column in there)]


def _identifier(sql: Any, table: str) -> Any:
    return sql.Identifier(*table.split("."))
