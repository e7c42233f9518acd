"""TimeGPT (Nixtla): Garza & Mergenthaler-Canseco 2023, arXiv:2310.03589; asked over the network.

A service: nothing is trained here, and people's readings leave the machine. What is sent, what it
costs and how a run that was cut short goes on: docs/timegpt.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from email.utils import mktime_tz, parsedate_tz
from time import sleep, time
from typing import Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, SecretStr, StrictBool, field_validator, model_validator
from tqdm.auto import tqdm

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import (
    INTERVALS,
    LOWER_ENDS,
    MEDIAN,
    UPPER_ENDS,
    Answer,
    Covariates,
)
from nocturnal_kedro.series.corpus import fourier_clock
from nocturnal_kedro.series.covariates import AMOUNTS, CLOCK, COVARIATES
from nocturnal_kedro.series.nights import Nights, fill_forward
from nocturnal_kedro.series.schema import SLOT, STEP_MINUTES

logger = logging.getLogger(__name__)

KEY = "NIXTLA_API_KEY"  # environment variable; the key is never an option: options are recorded
KEPT = "Answers that came are kept: the same command goes on from there."
FREQUENCY = f"{STEP_MINUTES}min"
DAY = pd.Timestamp("2000-01-01")  # invented: of a night's date only the clock time is true

# The service is asked for central intervals; the 0.05 quantile is the lower end of the 90 % one.
COLUMNS = (
    *(f"TimeGPT-{end}" for end in LOWER_ENDS),
    "TimeGPT",  # its point forecast, which the client takes as the median too
    *(f"TimeGPT-{end}" for end in UPPER_ENDS),
)

NIGHTS_A_REQUEST = 32
FINETUNE_STEPS = 10  # the client's own
PASSING = (408, 409, 429)  # and 5xx: what the client's authors ask again after, and error 500
FIRST_WAIT_S = 2.0  # doubled with each attempt
LONGEST_BACKOFF_S = 60.0
LONGEST_WAIT_S = 600.0  # what the service may ask for before the run ends instead


class Options(BaseModel, extra="forbid", frozen=True):
    """What is asked, of whom, and within which bounds; nothing is sent before it is allowed.

    With fine_tune or covariates each night is asked for alone: the service then fits to all series
    of a request together (it returns one set of weights of the covariates), and the context of a
    person's next night holds what happens tonight.
    """

    people_data_may_leave_this_machine: StrictBool = False
    strategy: Literal["zero_shot", "fine_tune"] = "zero_shot"
    # The client advises timegpt-1-long-horizon for long horizons and warns where the horizon is
    # longer than the model's own (recorded for hourly data: 24 steps, and 168 for this one).
    model: str = Field(default="timegpt-1-long-horizon", min_length=1)
    covariates: Covariates = ()
    finetune_steps: int | None = Field(default=None, ge=1)  # of fine_tune; 10 where not given
    context_steps: int | None = Field(default=None, ge=2)  # newest to send; all where not given
    batch: int | None = Field(default=None, ge=1, le=1000)  # nights a request; 32 where not given
    base_url: str = "https://api.nixtla.io"
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=5, ge=0, le=20)
    most_nights: int = Field(default=500, ge=0)  # that one node may ask for
    # Prices are in your contract; tokens are numbers sent and returned.
    dollars_per_request: float | None = Field(default=None, ge=0)
    dollars_per_1000_tokens: float | None = Field(default=None, ge=0)
    most_dollars: float | None = Field(default=None, ge=0)

    can_use: ClassVar[tuple[str, ...]] = COVARIATES
    extra: ClassVar[str] = "timegpt"
    packages: ClassVar[tuple[str, ...]] = ("nixtla",)

    @field_validator("base_url")
    @classmethod
    def _safe_address(cls, address: str) -> str:
        parts = urlsplit(address)
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme != "https" and not (parts.scheme == "http" and here):
            raise ValueError("readings and key are sent there: it must start with https://")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"an address is recorded: a secret belongs into {KEY}")
        return address

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.strategy == "zero_shot" and self.finetune_steps is not None:
            raise ValueError("finetune_steps is of strategy fine_tune, not of zero_shot")
        if self.alone and (self.batch or 1) > 1:
            raise ValueError(
                "with fine_tune or covariates the service fits to all nights of a request, some of "
                "which hold what happens in others: leave batch out"
            )
        if self.most_dollars is not None:
            if self.dollars_per_request is None and self.dollars_per_1000_tokens is None:
                raise ValueError(
                    "most_dollars needs a price: dollars_per_request or dollars_per_1000_tokens"
                )
            if self.strategy == "fine_tune" and self.dollars_per_1000_tokens is not None:
                raise ValueError(
                    "how many tokens fine-tuning costs is not published: with most_dollars give "
                    "dollars_per_request alone"
                )
        return self

    @property
    def alone(self) -> bool:
        """Whether each night is a request of its own."""
        return self.strategy == "fine_tune" or bool(self.covariates)

    @property
    def nights_a_request(self) -> int:
        """As given, or as many as may be."""
        return 1 if self.alone else self.batch or NIGHTS_A_REQUEST

    @property
    def steps_of_tuning(self) -> int:
        """What the service calls finetune_steps."""
        return 0 if self.strategy == "zero_shot" else self.finetune_steps or FINETUNE_STEPS


class _Night(NamedTuple):
    """All that the service gets of one night: T steps up to the origin, H after it."""

    glucose_T: np.ndarray
    past: dict[str, np.ndarray]  # covariate -> (T,)
    ahead: dict[str, np.ndarray]  # those whose future is known -> (H,)
    slot_of_day: int  # of the origin

    @property
    def tokens(self) -> int:
        """Numbers sent."""
        return sum(map(len, (self.glucose_T, *self.past.values(), *self.ahead.values())))


class _Failure(NamedTuple):
    """Why a request gave no answer; the key is not in it."""

    reason: str
    passing: bool  # whether it is worth asking again


def answer(nights: Nights, options: Options, answers: MutableMapping[str, bytes]) -> Answer:
    """Quantiles of every night: from `answers` where they are, from the service where not.

    `answers` takes each night's answer as it comes, by the SHA-256 of what was asked. Raises
    `InputError` where people's data may not leave, the key is absent, the estimate is above what
    is allowed, a stored answer is damaged, and where the service gives none.
    """
    count = len(nights.glucose_NL)
    asked = [_night(nights, number, options) for number in range(count)]
    keys = [_key(night, nights.horizon, options) for night in asked]
    known = {key: _unpack(key, answers[key], nights.horizon) for key in set(keys) if key in answers}
    missing = {key: night for key, night in zip(keys, asked, strict=True) if key not in known}
    if missing:
        _require_allowed(list(missing.values()), len(known), nights.horizon, options)
        service = _Service(options, _api_key())
        shown = tqdm(total=len(missing), desc="timegpt", unit="night", mininterval=15)
        with _warnings_alone(), shown:
            for part in _parts(list(missing), options.nights_a_request):
                told_BHQ = service.ask([missing[key] for key in part], nights.horizon)
                for key, told_HQ in zip(part, told_BHQ, strict=True):
                    answers[key] = _pack(told_HQ)
                    known[key] = told_HQ
                shown.update(len(part))
    told_NHQ = np.stack([known[key] for key in keys]).astype(float)
    return Answer(told_NHQ[..., MEDIAN], np.sort(told_NHQ, axis=-1))


def _night(nights: Nights, number: int, options: Options) -> _Night:
    """Its newest steps without a gap: a value stands until the next, what is before the first goes.

    A covariate that was never on record in the window is left out, and so is an amount with a gap:
    the service takes no mask, and its last dose repeated would be doses that nobody gave. A
    covariate whose future is not known is sent as history.
    """
    newest = slice(-min(options.context_steps or 10**9, nights.glucose_NL.shape[1]), None)
    glucose_T = nights.glucose_NL[number, newest]
    seen = np.flatnonzero(~np.isnan(glucose_T))
    length = len(glucose_T) - seen[0] if len(seen) else 0
    if length <= nights.horizon:
        raise InputError(
            f"timegpt: of night {number + 1} of {len(nights.glucose_NL)} there are {length} steps "
            f"from the first reading to the origin, and more than the {nights.horizon} that are to "
            f"be forecast are needed. Raise task.coverage, task.context_steps or "
            f"model_options.timegpt.context_steps, or shorten task.horizon_steps."
        )
    slot = int(nights.slot_of_day_N[number])
    past: dict[str, np.ndarray] = {}
    ahead: dict[str, np.ndarray] = {}
    for name in options.covariates:
        if name == CLOCK:
            for channel, turn in enumerate(("clock_sin", "clock_cos")):
                past[turn] = fourier_clock(slot + np.arange(1 - length, 1))[:, channel]
                ahead[turn] = fourier_clock(slot + np.arange(1, nights.horizon + 1))[:, channel]
            continue
        values_T = nights.past[name][number, -length:]
        gaps_T = np.isnan(values_T)
        if gaps_T.all() or (name in AMOUNTS and gaps_T.any()):
            continue
        past[name] = fill_forward(values_T)
        if name in nights.ahead and not np.isnan(nights.ahead[name][number]).any():
            ahead[name] = nights.ahead[name][number]
    return _Night(fill_forward(glucose_T[-length:]), past, ahead, slot)


def _key(night: _Night, horizon: int, options: Options) -> str:
    """SHA-256 of all that determines the answer."""
    described = {
        "service": options.base_url,
        "model": options.model,
        "finetune_steps": options.steps_of_tuning,
        "frequency": FREQUENCY,
        "horizon": horizon,
        "intervals": INTERVALS,
        "steps": len(night.glucose_T),
        "slot_of_day": night.slot_of_day,
        "past": list(night.past),
        "ahead": list(night.ahead),
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for values in (night.glucose_T, *night.past.values(), *night.ahead.values()):
        digest.update(values.astype("<f4").tobytes())  # the precision that the client sends
    return digest.hexdigest()


def _require_allowed(missing: list[_Night], known: int, horizon: int, options: Options) -> None:
    """Raise `InputError` unless these nights may be sent and paid for; tell what they will cost."""
    count = len(missing)
    requests = 1 + -(-count // options.nights_a_request)  # the first asks for the model's size
    tokens = sum(night.tokens for night in missing) + count * horizon * len(COLUMNS)
    prices = (
        (options.dollars_per_request, requests),
        (options.dollars_per_1000_tokens, tokens / 1000),
    )
    priced = [price * amount for price, amount in prices if price is not None]
    cost = f"about {sum(priced):.2f} dollars" if priced else "at a price that is not given"
    if options.strategy == "fine_tune" and options.dollars_per_1000_tokens is not None:
        cost += " and what the tokens of fine-tuning cost"
    estimate = f"{requests} requests, {tokens} tokens, {cost}"
    if not options.people_data_may_leave_this_machine:
        covariates = "".join(f", {name}" for name in options.covariates)
        raise InputError(
            f"timegpt would send people's data to {options.base_url} (a service of Nixtla): of "
            f"{count} nights up to {max(len(night.glucose_T) for night in missing)} steps of "
            f"glucose{covariates} and the clock time, and no name, source or date. If they may "
            f"leave this machine, say so: "
            f"model_options.timegpt.people_data_may_leave_this_machine=true. It would take "
            f"{estimate}."
        )
    if count > options.most_nights:
        raise InputError(
            f"timegpt would be asked for {count} nights, more than "
            f"model_options.timegpt.most_nights={options.most_nights} allows: {estimate}. Raise "
            f"it, or take fewer nights (cohort, splits)."
        )
    if options.most_dollars is not None and sum(priced) > options.most_dollars:
        raise InputError(
            f"timegpt would cost more than model_options.timegpt.most_dollars="
            f"{options.most_dollars:g}: {estimate} for {count} nights. Raise it, or take fewer "
            f"nights (cohort, splits)."
        )
    logger.info(
        "timegpt: %d nights are answered already; asking %s for %d: %s",
        known,
        options.base_url,
        count,
        estimate,
    )


def _api_key() -> SecretStr:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise InputError(
            f"timegpt needs a key of the service, and the environment variable {KEY} is empty or "
            f"absent: export {KEY}=... before the run. It belongs in no file of parameters."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{KEY} holds a character that no key has: copy it again.")
    return SecretStr(key)


class _Service:
    """Nixtla's client, asked again where that may help.

    The client would ask again by itself, but at a fixed interval, not after an error 500, and
    deaf to Retry-After: it is told to try once.
    """

    def __init__(self, options: Options, key: SecretStr) -> None:
        from nixtla import NixtlaClient

        self._options = options
        self._key = key
        self._told_to_wait_s: int | None = None
        self._jitter = random.Random()
        self._client = NixtlaClient(
            api_key=key.get_secret_value(),
            base_url=options.base_url,
            timeout=options.timeout_s,
            max_retries=1,
        )
        # The client's errors do not hold the header.
        self._client._client_kwargs["event_hooks"] = {"response": [self._note_wait]}

    def ask(self, nights: list[_Night], horizon: int) -> np.ndarray:
        """What the service says of a few nights, (B, H, Q) float32 in mg/dL, by COLUMNS."""
        attempt = 1
        while isinstance(told := self._try(nights, horizon), _Failure):
            wait_s = self._wait_s(attempt)
            if not told.passing or attempt > self._options.retries or wait_s > LONGEST_WAIT_S:
                later = (
                    f" It asks to wait {self._told_to_wait_s} s." if self._told_to_wait_s else ""
                )
                raise InputError(
                    f"timegpt at {self._options.base_url} {told.reason}. This was attempt "
                    f"{attempt} of {1 + self._options.retries}.{later} {KEPT}"
                )
            logger.warning("timegpt %s; asking again in %.1f s", told.reason, wait_s)
            sleep(wait_s)
            attempt += 1
        return told

    def _try(self, nights: list[_Night], horizon: int) -> np.ndarray | _Failure:
        # An error is turned into a value here, so that none that holds the key is ever chained.
        import httpx
        from nixtla.nixtla_client import ApiError

        history, ahead = _frames(nights, horizon)
        only_past = [name for name in nights[0].past if name not in nights[0].ahead]
        self._told_to_wait_s = None
        try:
            frame = self._client.forecast(
                history,
                h=horizon,
                freq=FREQUENCY,
                X_df=ahead,
                hist_exog_list=only_past or None,
                level=list(INTERVALS),
                model=self._options.model,
                finetune_steps=self._options.steps_of_tuning,
            )
            return _read(frame, len(nights), horizon)
        except ApiError as error:
            status = error.status_code or 0
            reason = f"answered with status {status}: {self._said(error.body)}"
            if status in (401, 403):
                reason += f" (is {KEY} right, and may it use model '{self._options.model}'?)"
            return _Failure(reason, status in PASSING or status >= 500)
        except httpx.RequestError as error:
            return _Failure(f"did not answer: {self._said(repr(error))}", True)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            return _Failure(f"gave an answer of no use: {self._said(repr(error))}", False)

    def _said(self, body: Any) -> str:
        """The service's own words, short, without the key and without what was sent."""
        if isinstance(body, dict):
            told = [body[name] for name in ("message", "details", "detail") if body.get(name)]
            # Of what it could not validate it names the place, and repeats the value.
            faults = [fault for part in told if isinstance(part, list) for fault in part]
            if faults and all(isinstance(fault, dict) for fault in faults):
                told = [f"{fault.get('loc')} {fault.get('msg')}" for fault in faults]
            body = "; ".join(map(str, told)) or body
        return str(body).replace(self._key.get_secret_value(), "***")[:300]

    def _note_wait(self, response: Any) -> None:
        self._told_to_wait_s = _seconds(response.headers.get("retry-after"))

    def _wait_s(self, attempt: int) -> float:
        """Twice as long each time, at least as long as told; jitter keeps many runs apart."""
        backoff = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S)
        return max(self._told_to_wait_s or 0.0, backoff / 2) + self._jitter.uniform(0, backoff / 2)


def _seconds(retry_after: str | None) -> int | None:
    """Retry-After in either of its forms, seconds or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return int(retry_after)
    moment = parsedate_tz(retry_after)
    return max(math.ceil(mktime_tz(moment) - time()), 0) if moment else None


def _frames(nights: list[_Night], horizon: int) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """History and, where there is one, known future as the client takes them.

    Series are numbered, and every night lies on the same invented date at its true clock time.
    """
    history, ahead = [], []
    for number, night in enumerate(nights):
        origin = DAY + night.slot_of_day * SLOT
        times = pd.date_range(end=origin, periods=len(night.glucose_T), freq=SLOT)
        series = {"unique_id": number, "ds": times, "y": night.glucose_T, **night.past}
        history.append(pd.DataFrame(series))
        if night.ahead:
            times = pd.date_range(start=origin + SLOT, periods=horizon, freq=SLOT)
            ahead.append(pd.DataFrame({"unique_id": number, "ds": times, **night.ahead}))
    return pd.concat(history, ignore_index=True), pd.concat(ahead) if ahead else None


def _read(frame: pd.DataFrame, nights: int, horizon: int) -> np.ndarray:
    """(B, H, Q) float32 by COLUMNS; `ValueError` or `KeyError` if it is not that."""
    if list(frame["unique_id"]) != list(np.repeat(np.arange(nights), horizon)):
        raise ValueError(f"{len(frame)} steps instead of {nights} nights of {horizon}")
    told = frame[list(COLUMNS)].to_numpy(float)
    if not np.isfinite(told).all():
        raise ValueError("a number is missing")
    return told.reshape(nights, horizon, len(COLUMNS)).astype("<f4")


HEAD = b"timegpt1"


def _pack(told_HQ: np.ndarray) -> bytes:
    """HEAD, the SHA-256 of what follows, float32 values."""
    values = told_HQ.tobytes()
    return HEAD + hashlib.sha256(values).digest() + values


def _unpack(key: str, stored: bytes, horizon: int) -> np.ndarray:
    values = stored[len(HEAD) + hashlib.sha256().digest_size :]
    whole = HEAD + hashlib.sha256(values).digest() + values
    if stored != whole or len(values) != 4 * horizon * len(COLUMNS):
        raise InputError(
            f"timegpt: the stored answer '{key}' is damaged. Delete the file of that name "
            f"(catalog entry 'answers': 07_model_output/answers) and run again: that night is then "
            f"asked for, and paid for, once more."
        )
    return np.frombuffer(values, "<f4").reshape(horizon, len(COLUMNS))


def _parts(keys: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(keys), size):
        yield keys[first : first + size]


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Of what the client logs, each warning once: its errors repeat the service's words whole."""
    warned: set[str] = set()

    def is_news(record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING or record.getMessage() in warned:
            return False
        warned.add(record.getMessage())
        return True

    client_logger = logging.getLogger("nixtla.nixtla_client")
    client_logger.addFilter(is_news)
    try:
        yield
    finally:
        client_logger.removeFilter(is_news)
