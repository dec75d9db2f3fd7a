"""The HTTP API: synthesis, voices, health, and an endpoint that OpenAI's clients know. docs/SERVER.md describes it.

Needs the extra `app`.
"""

import asyncio
import base64
import html
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from flowtron import __version__
from flowtron.audio import resampled
from flowtron.errors import InputError
from flowtron.formats import FORMATS, encode
from flowtron.service import BusyError, Service, describe

OPENAI_PCM_RATE = 24000  # Hz, what its clients expect of bare samples
# Names that clients of OpenAI send when nobody chose a voice; they stand for our speakers in turn.
OPENAI_VOICES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "fable",
    "marin",
    "nova",
    "onyx",
    "sage",
    "shimmer",
    "verse",
)
LOOK_EVERY_SECONDS = 0.5  # for a client who has left
BODY_SECONDS = 30.0  # that a client may pause while it sends
LOG = logging.getLogger("flowtron")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SynthesisRequest(BaseModel):
    """What to speak, and how."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(description="what to say")
    voice: str = Field("", description="a name from /v1/voices; the first when empty")
    sigma: float | None = Field(None, description="standard deviation of z; 0 is the most likely speech")
    rate: float = Field(1.0, description="speaking rate, 2 is twice as fast")
    seed: int = Field(1234, description="of the draw; the same seed gives the same speech")
    format: Literal["wav", "flac", "mp3", "opus", "pcm", "json"] = Field(
        "wav", description="json holds the wav in base64, and the times of words and tokens"
    )


class OpenAIRequest(BaseModel):
    """A request to /v1/audio/speech, with the fields that OpenAI's clients send."""

    model_config = ConfigDict(extra="allow")
    input: str = Field(description="what to say")
    model: str = Field("flowtron", description="not looked at")
    voice: str | dict[str, Any] = Field("", description="a name from /v1/voices, or one of OpenAI's")
    response_format: str = Field("mp3", description="mp3, opus, flac, wav or pcm (24 kHz)")
    speed: float = Field(1.0, description="0.25 to 4")


def error(sentence: str, status: int, kind: str = "invalid_request_error") -> JSONResponse:
    """An error as OpenAI's clients read it."""
    body = {"error": {"message": sentence, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, {"Retry-After": "2"} if status == 503 else None)


class LimitBody:
    """Refuses bodies that are too long, or that do not come."""

    def __init__(self, app: Any, most_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self.app, self.most_bytes, self.seconds = app, most_bytes, seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.most_bytes:
            too_long = error(f"the request is longer than {self.most_bytes} bytes; send less.", 413)
            await too_long(scope, receive, send)
            return
        taken, complete = 0, False

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.seconds)
            except TimeoutError:
                raise HTTPException(408, f"nothing more came for {self.seconds:g} s") from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self.most_bytes:
                raise HTTPException(413, f"the request is longer than {self.most_bytes} bytes")
            return message

        await self.app(scope, limited, send)


async def answer(request: Request, service: Service, prepare: Callable[[], Callable[[], Response]]) -> Response:
    """Check a request and do its work; whatever goes wrong becomes a sentence and harms no other request.

    Work that still waits when its client leaves is given up.
    """
    try:
        future = service.submit(prepare())
        done = asyncio.wrap_future(future)
        while not (await asyncio.wait({done}, timeout=LOOK_EVERY_SECONDS))[0]:
            if await request.is_disconnected():
                future.cancel()
        if done.cancelled():
            return error("the server is ending; try again when it is back.", 503, "server_error")
        return done.result()
    except BusyError as problem:
        return error(str(problem), 503, "server_error")
    except InputError as problem:
        return error(str(problem), 400)
    except Exception:
        LOG.exception("a request failed")
        return error("a fault of flowtron itself; the server's log has the details.", 500, "server_error")


def build_api(service: Service) -> FastAPI:
    """Build the application of the API."""
    # The usual page of documentation loads its scripts from elsewhere; ours is below.
    api = FastAPI(title="Flowtron", version=__version__, docs_url=None, redoc_url=None)
    api.add_middleware(LimitBody, most_bytes=service.limits.upload_bytes)
    explained: dict[int | str, dict[str, Any]] = {
        400: {"description": "something in the request is wrong; error.message says what and how to correct it"},
        413: {"description": "the request is too long"},
        503: {"description": "too many requests wait already"},
    }
    sound = {media: {"schema": {"type": "string", "format": "binary"}} for *_, media in FORMATS.values()}

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        return error(_sentence(problem), 400)

    @api.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> JSONResponse:
        return error(
            f"{request.method} {request.url.path}: {problem.detail}; see /docs for what can be sent.",
            problem.status_code,
        )

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return documentation(api.openapi())

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server is there, and how many requests are waiting or at work."""
        return {"status": "ok", "version": __version__, "waiting": service.waiting, "voices": list(service.choices)}

    @api.get("/v1/voices")
    async def voices() -> dict[str, Any]:
        """The names to ask for, with their sample rates, and what OpenAI's names stand for."""
        rows = [
            {"name": each.name, "sample_rate": each.voice.settings.sample_rate} for each in service.choices.values()
        ]
        return {"voices": rows, "aliases": {name: stand_in(service, name) for name in OPENAI_VOICES}}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The voices' models, as OpenAI's clients list them."""
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "flowtron"} for name in service.voices]
        return {"object": "list", "data": rows}

    @api.post("/v1/synthesis", response_class=Response, responses={**explained, 200: {"content": sound}})
    async def synthesis(asked: SynthesisRequest, request: Request) -> Response:
        """Speak a text."""

        def prepare() -> Callable[[], Response]:
            speak = service.order(asked.text, asked.voice, asked.sigma, asked.rate, asked.seed)

            def work() -> Response:
                speech = speak()
                if asked.format == "json":
                    wav = encode(speech.wav, speech.sample_rate, "wav")
                    return JSONResponse({**describe(speech), "wav": base64.b64encode(wav).decode()})
                headers = {"X-Sample-Rate": str(speech.sample_rate), "X-Seconds": f"{speech.seconds:.3f}"}
                content = encode(speech.wav, speech.sample_rate, asked.format)
                return Response(content, media_type=FORMATS[asked.format][2], headers=headers)

            return work

        return await answer(request, service, prepare)

    @api.post("/v1/audio/speech", response_class=Response, responses={**explained, 200: {"content": sound}})
    async def speech(asked: OpenAIRequest, request: Request) -> Response:
        """Speak a text as OpenAI's API does."""

        def prepare() -> Callable[[], Response]:
            if asked.response_format not in FORMATS:
                raise InputError(
                    f"response_format is {asked.response_format[:40]!r}, which is not written here; use one of "
                    f"{', '.join(FORMATS)}."
                )
            name = asked.voice if isinstance(asked.voice, str) else str(asked.voice.get("id", ""))
            speak = service.order(asked.input, stand_in(service, name), rate=asked.speed)

            def work() -> Response:
                spoken = speak()
                wav, rate = spoken.wav, spoken.sample_rate
                if asked.response_format == "pcm" and rate != OPENAI_PCM_RATE:
                    wav, rate = resampled(wav, rate, OPENAI_PCM_RATE), OPENAI_PCM_RATE
                return Response(encode(wav, rate, asked.response_format), media_type=FORMATS[asked.response_format][2])

            return work

        return await answer(request, service, prepare)

    @api.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"], include_in_schema=False)
    async def unknown(path: str) -> JSONResponse:
        return error(f"/v1/{path[:80]}: there is nothing here; see /docs for what there is.", 404)

    return api


def documentation(schema: dict[str, Any]) -> str:
    """A page that lists the endpoints of an OpenAPI schema, with the fields of what they are sent."""

    def cell(value: object) -> str:
        return f"<td>{html.escape(str(value))}</td>"

    parts = ["<title>Flowtron's API</title><style>body{font-family:system-ui;max-width:60em;margin:2em auto}"]
    parts.append("td{padding:.2em 1em .2em 0;vertical-align:top}</style><h1>Flowtron's API</h1>")
    parts.append('<p>Errors are <code>{"error": {"message": ...}}</code>. The schema: ')
    parts.append('<a href="openapi.json">openapi.json</a>.</p>')
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(operation['description'])}</p>")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content:
                fields = schema["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[1]]["properties"]
                rows = "".join(
                    f"<tr>{cell(name)}{cell(field.get('description', ''))}{cell(field.get('default', 'required'))}</tr>"
                    for name, field in fields.items()
                )
                parts.append(f"<table><tr><th>field<th><th>default</tr>{rows}</table>")
    return "".join(parts)


def stand_in(service: Service, name: str) -> str:
    """The speaker that a name of OpenAI's stands for, unless there is one of that name; others stay as they are."""
    if name in service.choices or name not in OPENAI_VOICES:
        return name
    return list(service.choices)[OPENAI_VOICES.index(name) % len(service.choices)]


def _sentence(problem: RequestValidationError) -> str:
    first = problem.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON (at {first['loc'][-1]}); send a JSON object."
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    value = first.get("input")
    shown = f" is {str(value)[:60]!r}" if isinstance(value, str | int | float) and not _odd(value) else ""
    message = str(first["msg"])
    return f"{where}{shown}: {message[0].lower()}{message[1:]}; correct the request."


def _odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
