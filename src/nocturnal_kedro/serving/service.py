"""The HTTP service: a typed schema, limits, clear refusals; no reading is logged or kept."""

from __future__ import annotations

import logging
import threading
import traceback
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import nocturnal_kedro
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.cards import DISCLAIMER
from nocturnal_kedro.serving.readings import MOST_DAYS, Recent
from nocturnal_kedro.serving.tonight import About, Tonight, forecast_tonight, make_ready

if TYPE_CHECKING:
    from fastapi import FastAPI

    from nocturnal_kedro.training.artifact import Artifact

logger = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**20  # a month of readings every 5 minutes, with doses, is 1 MB
MOST_READ = 4 * MOST_BYTES  # and thrown away: who is cut off while sending does not see why
MOST_AT_ONCE = 64  # requests that are held; the others are told to come back
SHOWN_FAULTS, MOST_TOLD = 5, 2000  # of a refusal: faults, and letters
BAD_BODY = "the body cannot be read: give JSON in UTF-8, as /openapi.json describes it."
DESCRIPTION = f"""{DISCLAIMER}

One person's recent readings in; quantiles of glucose, P(low tonight) and a night card out. Give the
last three days, or at least 24 hours: less is refused, and what acted before the first row is not
known. At most {MOST_DAYS} days and {MOST_BYTES // 2**20} MiB. No reading is logged or kept.
"""


class Refusal(BaseModel, extra="forbid", frozen=True):
    """Why there is no answer."""

    disclaimer: str = DISCLAIMER
    detail: str


class Health(BaseModel, extra="forbid", frozen=True):
    """That the model is in memory."""

    disclaimer: str = DISCLAIMER
    status: str = "ready"


class Version(BaseModel, extra="forbid", frozen=True):
    """What answers."""

    disclaimer: str = DISCLAIMER
    model_id: str
    model: str
    kind: str
    fingerprint: str  # SHA-256 of the artifact's hashes
    package: str
    trained: str | None  # when, where that is known
    data: str | None  # fingerprint of readings, splits and origins that it was fitted to
    people: int  # that it has learnt from
    anchor: str
    context_steps: int
    horizon_steps: int


def make_app(artifact: Artifact, about: About, threads: int = 1) -> FastAPI:
    """The application that answers by one model, with `threads` of torch's for each forecast.

    Raises `InputError` on a model that cannot be served, and where FastAPI is not installed.
    """
    require_serving()
    import torch
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    torch.set_num_threads(threads)
    served = make_ready(artifact, about)
    one_at_a_time = threading.Lock()  # more would share the same cores, and all wait longer
    app = FastAPI(
        title="nocturnal_kedro",
        version=nocturnal_kedro.__version__,
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (400, 413, 415, 422, 503)
    }

    @app.post("/forecast", responses=refusals)
    def forecast(recent: Recent) -> Tonight:
        """The night ahead of one person."""
        with one_at_a_time:
            return forecast_tonight(served, recent)

    # Answered at once, while forecasts wait for their turn in threads.
    @app.get("/health")
    async def health() -> Health:
        """Whether it answers."""
        return Health()

    @app.get("/version")
    async def version() -> Version:
        """Which model answers, and what it was fitted to."""
        return Version(
            model_id=about.model_id,
            model=artifact.name,
            kind=artifact.kind,
            fingerprint=about.fingerprint,
            package=nocturnal_kedro.__version__,
            trained=about.trained,
            data=artifact.record.get("data") or None,
            people=len(artifact.people),
            anchor=served.task.anchor,
            context_steps=served.task.context_steps,
            horizon_steps=served.task.horizon_steps,
        )

    def refused(status: int, detail: str, headers: Any = None) -> Response:
        return Response(_refusal(detail), status, headers, "application/json")

    @app.exception_handler(InputError)
    def _unusable(request: Request, error: InputError) -> Response:
        return refused(422, str(error))

    @app.exception_handler(RequestValidationError)
    def _untyped(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            return refused(415, "content-type: give application/json, with JSON as the body.")
        return refused(422, _faults(list(error.errors())))

    @app.exception_handler(HTTPException)
    def _other(request: Request, error: HTTPException) -> Response:
        detail = BAD_BODY if error.status_code == 400 else str(error.detail)
        return refused(error.status_code, detail, error.headers)

    app.add_middleware(Limits)
    return app


def require_serving() -> None:
    """Raise `InputError` where the packages of the extra are not installed."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving needs {', '.join(missing)}, which is not installed: "
            f'pip install "nocturnal-kedro[serving]".'
        )


class Limits:
    """ASGI middleware: no body beyond MOST_BYTES, no more than MOST_AT_ONCE, and no reading logged.

    A body is read whole before it is passed on, so that one sent in pieces without a length is
    measured as well. What goes wrong inside is logged by its kind and place: its message may hold
    what was sent.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.held = 0  # changed by the one thread of the event loop alone

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI asks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.held >= MOST_AT_ONCE:
            await _send(send, 503, "too many requests at once: ask again in a second.")
            return
        self.held += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.held -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(declared[:20]) if declared.isdigit() else 0
        body, sent, more = bytearray(), 0, size <= MOST_READ
        while more and sent <= MOST_READ:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            piece = message.get("body", b"")
            sent += len(piece)
            if sent <= MOST_BYTES:
                body += piece
            more = message.get("more_body", False)
        if max(size, sent) > MOST_BYTES:
            await _send(
                send, 413, f"the body has over {MOST_BYTES} bytes: give the last days alone."
            )
            return
        messages = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])
        started = False

        async def replay() -> Any:
            return next(messages, None) or await receive()

        async def watch(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, replay, watch)
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s, whose message is withheld:\n%s", type(error).__name__, frames)
            if not started:
                await _send(send, 500, "a fault of the service; nothing of the request is kept.")


async def _send(send: Any, status: int, detail: str) -> None:
    body = _refusal(detail)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refusal(detail: str) -> bytes:
    # ASCII alone: what was sent may hold half of a character.
    told = detail[:MOST_TOLD].encode("ascii", "backslashreplace").decode()
    return Refusal(detail=told).model_dump_json().encode()


def _faults(faults: list[dict[str, Any]]) -> str:
    """Where and what; not the values: a reading is nobody's but the asker's."""
    told = []
    # Rows that are wrong are left out of the count of rows.
    faults = [f for f in faults if f["type"] != "too_short"] or faults
    for fault in faults[:SHOWN_FAULTS]:
        place = ".".join(str(part)[:50] for part in fault["loc"] if part != "body")
        told.append(f"{place or 'body'}: {fault['msg'].removeprefix('Value error, ')}")
    more = len(faults) - SHOWN_FAULTS
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")
