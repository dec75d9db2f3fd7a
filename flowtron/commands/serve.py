"""Serve a web page to speak with, and an HTTP API that OpenAI's clients understand."""

import argparse
import asyncio
import json
import logging
import os
import socket
from pathlib import Path
from types import FrameType

from flowtron.commands import Outcome, add_device_option, load_voice
from flowtron.errors import InputError, remedy

EXAMPLES = """\
flowtron serve
flowtron serve runs/demo/checkpoints/00008500 --port 8000
curl -s localhost:7860/v1/synthesis -H 'content-type: application/json' -d '{"text": "Hello."}' -o hello.wav
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron serve`."""
    parser.add_argument("models", nargs="*", help="checkpoint folders or bundled voices; all bundled ones if absent")
    parser.add_argument("-v", "--vocoder", default=None, help="a vocoder's name or folder; the voice's own if absent")
    add_device_option(parser)
    parser.add_argument("--engine", default="auto", help="what computes the frames: auto, kernel or torch")
    parser.add_argument("--dtype", default="float32", help="weights of the kernel: float32, bfloat16 or int8")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=int, default=7860, help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--max-text", type=int, default=2000, help="characters of a text (default: %(default)s)")
    parser.add_argument("--max-upload", type=int, default=20_000_000, help="bytes of a request (default: %(default)s)")
    parser.add_argument("--max-queue", type=int, default=32, help="requests at once (default: %(default)s)")


def run(options: argparse.Namespace) -> Outcome:
    """Serve until interrupted."""
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"serving needs the package {error.name}; {remedy('app')}.") from None
    from flowtron.app import build_app
    from flowtron.connections import Connection
    from flowtron.service import Limits, Service
    from flowtron.synthesizer import bundled_voices

    for name in ("max_text", "max_upload", "max_queue"):
        if getattr(options, name) < 1:
            raise InputError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, which lets nothing in; give 1 or more."
            )
    listener = listen(options.host, options.port)
    models = options.models or bundled_voices()
    if not models:
        raise InputError("no voice is bundled; name a checkpoint folder.")
    voices = {}
    for model in models:
        options.model = model
        name = Path(model).name
        if name in voices:
            raise InputError(f"two voices are called {name}; rename the folder of one.")
        voices[name] = load_voice(options)
    service = Service(voices, Limits(options.max_text, options.max_upload, options.max_queue))
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if options.json:
        print(json.dumps({"url": address, "voices": list(service.choices)}), flush=True)
    elif not options.quiet:
        print(f"{address} speaks as {', '.join(service.choices)}; its API: /docs; end with Ctrl-C", flush=True)

    class Server(uvicorn.Server):
        """Gives up what waits as soon as it is told to end."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.close()
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(build_app(service), http=Connection, log_level="warning", timeout_graceful_shutdown=5)
    )
    logging.getLogger("uvicorn.error").addFilter(is_fault)
    server.run(sockets=[listener])
    return Outcome("")


def is_fault(record: logging.LogRecord) -> bool:
    """Whether a record of the server's log is to be told: not a request that was cut off because the server ends."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        InputError: it is taken, or there is no such address.
    """
    # The system's look-up takes a larger number modulo 65,536.
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} is none; choose one from 0 to 65535, where 0 takes any that is free.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{host}:{port} cannot be listened at ({error}); choose another with --host or --port."
        ) from None
    return listener
