"""A server under load and abuse, on this machine only: every request answered or refused with a reason, memory flat.

    python scripts/load_test.py VOICE                  16 clients for 10 minutes
    python scripts/load_test.py VOICE --seconds 30

It starts `flowtron serve` on a free port of the loopback address, lets clients speak sentences, and beside them others
that send half a request, too much, nonsense, names that lead elsewhere, or hang up. It stops by itself, and ends with
exit code 1 when a request was left unanswered, an answer had no reason in it, the server died, or memory grew.
"""

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

HOST = "127.0.0.1"
SENTENCES = (
    "Hello.",
    "The quick brown fox jumps over the lazy dog.",
    "It is well known that deep generative models have a rich latent space.",
    "At 9:30 on the 21st, she paid $5.50 for 3 books.",
    "One. Two. Three.",
)
ANSWER_SECONDS = 120.0  # a queue of 32 sentences on a busy machine
GROWTH = 1.10  # of resident memory between the first third of the run and the last
WARM_UP_SECONDS = 5.0


class Tally:
    """What came of the requests."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.codes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def note(self, kind: str, code: int, seconds: float | None = None) -> None:
        """Note an answer."""
        with self.lock:
            self.codes[f"{kind} {code}"] += 1
            if seconds is not None:
                self.seconds.append(seconds)

    def fail(self, what: str) -> None:
        """Note what must not happen."""
        with self.lock:
            self.failures.append(what)


def post(port: int, path: str, body: bytes, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
    """Send a request; return status and content."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def reason(content: bytes) -> str:
    """The sentence of a refusal, or nothing."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def speak(port: int, tally: Tally, until: float, seed: int) -> None:
    """A client that behaves, until the time is over."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        asked = {"input": draw.choice(SENTENCES), "response_format": draw.choice(("wav", "wav", "pcm", "flac"))}
        began = time.monotonic()
        try:
            status, content = post(port, "/v1/audio/speech", json.dumps(asked).encode())
        except OSError as error:
            tally.fail(f"no answer to a good request: {error}")
            continue
        tally.note("speech", status, time.monotonic() - began if status == 200 else None)
        if status == 200 and len(content) < 100:
            tally.fail("an empty sound")
        if status != 200 and not (status == 503 and reason(content)):
            tally.fail(f"a good request was answered with {status}: {reason(content)!r}")
        if status == 503:
            time.sleep(0.5)


BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"input": 3}',
    b'{"input": ""}',
    b'{"input": "\\u0000"}',
    b'{"input": "hi", "voice": "../../../etc/passwd"}',
    b'{"input": "hi", "voice": "..\\\\..\\\\x"}',
    b'{"input": "hi", "response_format": "../mp3"}',
    b'{"input": "hi", "speed": 1e999}',
    b'{"input": "hi", "speed": -1}',
    b'{"input": "' + b"a" * 100_000 + b'"}',
    b"[" * 50_000,
)
BAD_PATHS = (
    "/v1/../../etc/passwd",
    "/v1/voices/%2e%2e%2f%2e%2e%2fetc/passwd",
    "/gradio_api/file=/etc/passwd",
    "/v1/" + "x" * 5000,
)


def misbehave(port: int, tally: Tally, until: float, seed: int) -> None:
    """A client that sends nonsense, too much or half of it, or hangs up."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        kind = draw.choice(("body", "path", "huge", "half", "slow", "cancel"))
        try:
            if kind == "body":
                status, content = post(port, "/v1/audio/speech", draw.choice(BAD_BODIES))
                tally.note(kind, status)
                if not (400 <= status < 500 or status == 503) or not reason(content):
                    tally.fail(f"nonsense was answered with {status}: {content[:100]!r}")
            elif kind == "path":
                connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
                connection.request("GET", draw.choice(BAD_PATHS))
                answer = connection.getresponse()
                content = answer.read()
                tally.note(kind, answer.status)
                if b"root:" in content or answer.status < 400:
                    tally.fail(f"a path that leads elsewhere was answered with {answer.status}")
                connection.close()
            else:
                abuse(port, kind, tally)
        except (OSError, http.client.HTTPException) as error:
            # A server may close a connection that is abused; only good requests must be answered.
            tally.note(f"{kind} {type(error).__name__}", 0)
        time.sleep(draw.uniform(0, 0.5))


def abuse(port: int, kind: str, tally: Tally) -> None:
    """Send a request that does not end as it begins."""
    body = json.dumps({"input": SENTENCES[2], "response_format": "wav"}).encode()
    declared = {"huge": 10**12, "half": len(body), "slow": len(body), "cancel": len(body)}[kind]
    head = "POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {declared}\r\n\r\n"
    with socket.create_connection((HOST, port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(head.encode())
        if kind == "huge":
            answer = connection.recv(4096).split(b"\r\n")[0]
            tally.note(kind, int(answer.split()[1]) if answer.startswith(b"HTTP") else 0)
        elif kind == "half":
            connection.sendall(body[: len(body) // 2])
        elif kind == "slow":
            for start in range(0, len(body), 16):
                connection.sendall(body[start : start + 16])
                time.sleep(0.1)
            answer = connection.recv(4096).split(b"\r\n")[0]
            tally.note(kind, int(answer.split()[1]) if answer.startswith(b"HTTP") else 0)
        else:
            connection.sendall(body)
    if kind in ("half", "cancel"):
        tally.note(kind, 0)


def resident_mb(pid: int) -> float:
    """Resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def serve(voice: str, arguments: list[str]) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return it and its port."""
    command = [sys.executable, "-m", "flowtron.cli", "serve", voice, "--port", "0", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if match := re.search(rf"http://{re.escape(HOST)}:(\d+)", line):
            return server, int(match[1])
    raise SystemExit(f"the server did not start (exit code {server.wait()})")


def stop(server: subprocess.Popen[str]) -> None:
    """End the server, by force when it still works on requests after a while."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def percentile(values: list[float], share: float) -> float:
    """A percentile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def wait_until_ready(port: int) -> None:
    """Wait until the server answers a first sentence, for which kernels may have to be compiled."""
    for _ in range(60):
        try:
            if post(port, "/v1/audio/speech", b'{"input": "Hello.", "response_format": "wav"}')[0] == 200:
                return
        except OSError:
            time.sleep(1)
    raise SystemExit("the server does not answer")


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voice", help="checkpoint folder or bundled voice")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--abusers", type=int, default=4)
    options, rest = parser.parse_known_args()
    server, port = serve(options.voice, rest)
    tally = Tally()
    memory: list[float] = []
    try:
        wait_until_ready(port)
        until = time.monotonic() + min(options.seconds, 3600.0)
        clients = [
            threading.Thread(target=target, args=(port, tally, until, seed))
            for target, count in ((speak, options.clients), (misbehave, options.abusers))
            for seed in range(count)
        ]
        for client in clients:
            client.start()
        time.sleep(min(WARM_UP_SECONDS, options.seconds / 4))
        while time.monotonic() < until and server.poll() is None:
            memory.append(resident_mb(server.pid))
            time.sleep(0.5)
        for client in clients:
            client.join(2 * ANSWER_SECONDS)
        if any(client.is_alive() for client in clients):
            tally.fail("a client still waits for its answer")
        if server.poll() is not None:
            tally.fail(f"the server ended with exit code {server.returncode}")
        elif post(port, "/v1/audio/speech", b'{"input": "Still here.", "response_format": "wav"}')[0] != 200:
            tally.fail("the server no longer speaks")
    finally:
        stop(server)
    third = max(1, len(memory) // 3)
    first, last = (sorted(part)[len(part) // 2] for part in (memory[:third], memory[-third:]))
    if last > GROWTH * first:
        tally.fail(f"resident memory grew from {first:.0f} to {last:.0f} MB")
    good = len(tally.seconds)
    print(
        f"{options.clients} clients and {options.abusers} abusers for {options.seconds:.0f} s: {good} sentences spoken"
    )
    print("answers: " + ", ".join(f"{name} x{count}" for name, count in sorted(tally.codes.items())))
    print(f"p50 {percentile(tally.seconds, 0.5):.2f} s, p99 {percentile(tally.seconds, 0.99):.2f} s")
    print(f"resident memory {first:.0f} MB in the first third, {last:.0f} MB in the last")
    for failure, count in Counter(tally.failures).items():
        print(f"FAILED x{count}: {failure}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
