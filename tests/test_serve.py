"""The server: its API by plain HTTP and by OpenAI's client, and its page in a real browser."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from tiny import save_tiny_voice, write_wav

from flowtron.cli import main
from flowtron.commands.serve import is_fault, listen
from flowtron.errors import InputError
from flowtron.service import BusyError, Limits, Service
from flowtron.synthesizer import Synthesizer

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("gradio")

LIMITS = Limits(text_characters=200, upload_bytes=300_000, queue=8)
TEXT = "It is well known that deep generative models have a rich latent space."


class SlowVoice:
    """A voice that holds its request until it is let go."""

    def __init__(self, voice):
        self.voice, self.go, self.asked = voice, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.voice, name)

    def __call__(self, text, **options):
        self.asked.set()
        assert self.go.wait(60)
        if text.startswith("Crash"):
            raise RuntimeError("a secret of the machine")
        return self.voice(text, **options)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return Synthesizer.load(save_tiny_voice(tmp_path_factory.mktemp("voice") / "tiny"))


@contextlib.contextmanager
def serving(service):
    from flowtron.app import build_app

    listener = listen("127.0.0.1", 0)
    from flowtron.connections import Connection

    config = uvicorn.Config(build_app(service), http=Connection, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    deadline = time.monotonic() + 120
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def url(voice):
    with serving(Service({"tiny": voice}, LIMITS)) as url:
        yield url


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def synthesis(client, **body):
    return client.post("/v1/synthesis", json={"text": "Hello there.", **body})


def sentence(response):
    message = response.json()["error"]["message"]
    assert "Traceback" not in message and message.endswith(".")
    return message


def test_health_voices_models_and_documentation(client):
    assert client.get("/health").json()["status"] == "ok"
    assert [row["name"] for row in client.get("/v1/voices").json()["voices"]] == ["ann", "ben"]
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert {"/health", "/v1/voices", "/v1/synthesis", "/v1/audio/speech"} <= set(
        client.get("/openapi.json").json()["paths"]
    )
    documentation = client.get("/docs").text
    assert "/v1/synthesis" in documentation and "http" not in documentation.replace("httpx", "")


def test_synthesis_is_what_python_gives(client, voice):
    response = synthesis(client, voice="ben", sigma=0.5, rate=0.5, seed=7)
    assert response.status_code == 200 and response.headers["content-type"] == "audio/wav"
    wav, rate = soundfile.read(io.BytesIO(response.content))
    expected = voice("Hello there.", speaker="ben", sigma=0.5, rate=0.5, seed=7)
    assert rate == expected.sample_rate and len(wav) == len(expected.wav)
    assert np.abs(wav - expected.wav).max() < 1e-3
    assert float(response.headers["x-seconds"]) == pytest.approx(expected.seconds, abs=1e-3)


def test_json_has_sound_and_times(client):
    values = synthesis(client, format="json").json()
    assert [word["text"] for word in values["words"]] == ["Hello", "there"]
    wav, _ = soundfile.read(io.BytesIO(base64.b64decode(values["wav"])))
    assert len(wav) / values["sample_rate"] == pytest.approx(values["seconds"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"text": "a" * 201}, "201 characters"),
        ({"text": " "}, "empty"),
        ({"text": "?!"}, "nothing to speak"),
        ({"sigma": -1}, "sigma is -1"),
        ({"sigma": 1e9}, "sigma"),
        ({"rate": 0}, "rate is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**30}, "seed"),
        ({"voice": "nobody"}, "choose one of ann, ben"),
        ({"voice": "../../etc/passwd"}, "choose one of"),
        ({"format": "aiff"}, "format"),
        ({"sgima": 1}, "sgima"),
        ({"text": None}, "text"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_a_sentence(body, expected, client):
    response = synthesis(client, **body)
    assert response.status_code == 400
    assert expected in sentence(response)


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"\xff\xfe\x00", 400), (b"[" * 100_000, 400), (b'"text"', 400), (b"x" * 300_001, 413)],
)
def test_bodies_that_are_no_request_are_refused(content, status, client):
    response = client.post("/v1/synthesis", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert sentence(response)


def test_a_long_body_without_a_declared_length_is_refused(client):
    response = client.post(
        "/v1/synthesis", content=(b"x" * 10_000 for _ in range(100)), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/synthesis", 404)])
def test_wrong_addresses_are_told(method, path, status, client):
    response = client.request(method, path)
    assert response.status_code == status and sentence(response)


def test_a_crash_harms_no_other_request_and_the_queue_has_an_end(voice):
    slow = SlowVoice(voice)
    service = Service({"tiny": slow}, Limits(queue=3))
    with serving(service) as url:
        answers = {}

        def ask(text):
            answers[text] = httpx.post(f"{url}/v1/synthesis", json={"text": text}, timeout=60)

        threads = [threading.Thread(target=ask, args=(text,)) for text in ("Crash now.", "Hello there.", "Good day.")]
        for thread in threads:
            thread.start()
        assert slow.asked.wait(30)
        deadline = time.monotonic() + 30
        while service.waiting < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = httpx.post(f"{url}/v1/synthesis", json={"text": "Too late."}, timeout=60)
        assert refused.status_code == 503 and "waiting" in sentence(refused) and refused.headers["retry-after"]
        assert httpx.get(f"{url}/health", timeout=60).json()["waiting"] == 3
        slow.go.set()
        for thread in threads:
            thread.join(60)
        assert answers["Crash now."].status_code == 500 and "secret" not in answers["Crash now."].text
        assert answers["Hello there."].status_code == answers["Good day."].status_code == 200
        assert httpx.get(f"{url}/health", timeout=60).json()["waiting"] == 0


def test_who_leaves_makes_room_and_who_stays_is_told_of_the_end(voice):
    slow = SlowVoice(voice)
    service = Service({"tiny": slow}, Limits(queue=50))
    with serving(service) as url:
        answers = []

        def ask():
            answers.append(httpx.post(f"{url}/v1/synthesis", json={"text": "Hello there."}, timeout=60))

        staying = [threading.Thread(target=ask) for _ in range(2)]
        for thread in staying:
            thread.start()
        assert slow.asked.wait(30)
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/synthesis", json={"text": "Hello there."}, timeout=0.2)
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/health", timeout=60).json()["waiting"] > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert service.waiting == 2
        service.close()
        slow.go.set()
        for thread in staying:
            thread.join(60)
        assert sorted(answer.status_code for answer in answers) == [200, 503]
        assert "ending" in sentence(max(answers, key=lambda answer: answer.status_code))
        with pytest.raises(BusyError, match="ending"):
            service.run(lambda: None)


def test_as_many_wait_as_may_and_the_server_still_answers(voice):
    slow = SlowVoice(voice)
    service = Service({"tiny": slow}, Limits(queue=60))
    with serving(service) as url, ThreadPoolExecutor(60) as clients:
        asked = [
            clients.submit(httpx.post, f"{url}/v1/synthesis", json={"text": "Crash now."}, timeout=60)
            for _ in range(60)
        ]
        deadline = time.monotonic() + 30
        while service.waiting < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert httpx.get(f"{url}/health", timeout=5).json()["waiting"] == 60
        refused = httpx.post(f"{url}/v1/synthesis", json={"text": "Too late."}, timeout=5)
        assert refused.status_code == 503
        slow.go.set()
        assert {each.result().status_code for each in asked} == {500}


def test_a_text_of_digits_counts_as_what_is_spoken(client):
    answer = synthesis(client, text="123456789 " * 19)
    assert answer.status_code == 400 and "counts as 874 characters, a digit as 5, more than 400" in sentence(answer)


def test_long_silence_is_refused(client):
    answer = synthesis(client, text="Hi." + "[pause 60s]" * 3 + " Bye.")
    assert answer.status_code == 400 and "pauses of 180 s in all, more than 120" in sentence(answer)


def test_several_voices_are_told_apart(voice):
    service = Service({"one": voice, "two": voice})
    assert list(service.choices) == ["one/ann", "one/ben", "two/ann", "two/ben"]
    assert service.choose("two/ben").speaker == "ben"
    with pytest.raises(InputError, match="no voice 'ann'"):
        service.choose("ann")
    with pytest.raises(BusyError):
        Service({"one": voice}, Limits(queue=0)).speak("Hi.")


@pytest.mark.parametrize(("format", "kind"), [("wav", "WAV"), ("flac", "FLAC"), ("mp3", "MP3"), ("opus", "OGG")])
def test_the_official_openai_client_gets_playable_sound(format, kind, url):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60)
    speech = client.audio.speech.create(model="tts-1", voice="ben", input=TEXT, response_format=format)
    with soundfile.SoundFile(io.BytesIO(speech.read())) as file:
        wav = file.read()
        assert file.format == kind and np.sqrt(np.mean(wav**2)) > 1e-3 and len(wav) > 0.2 * file.samplerate


def test_the_official_openai_client_streams_and_is_told_errors(url, voice, tmp_path):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0)
    with client.audio.speech.with_streaming_response.create(model="x", voice="alloy", input=TEXT) as response:
        response.stream_to_file(tmp_path / "a.mp3")
    assert soundfile.info(tmp_path / "a.mp3").frames > 1000
    pcm = client.audio.speech.create(model="x", voice="alloy", input=TEXT, response_format="pcm").read()
    seconds = voice(TEXT, speaker="ann").seconds
    assert len(pcm) / 2 / 24000 == pytest.approx(seconds, abs=0.01)
    for wrong, told in (
        ({"response_format": "aac"}, "aac"),
        ({"voice": "nobody"}, "ann"),
        ({"input": "a" * 201}, "201"),
    ):
        with pytest.raises(openai.BadRequestError, match=told):
            client.audio.speech.create(**{"model": "x", "voice": "alloy", "input": TEXT, **wrong})
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_port_that_is_taken_is_a_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened at" in capsys.readouterr().err
    assert main(["serve", "no/such/voice", "--port", "0"]) == 2
    assert main(["serve", "--port", "99999"]) == 2


# The page, in a real browser.


@pytest.fixture(scope="module")
def browser():
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("there is no Chromium; install it, for example with apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    elsewhere = []
    page.on(
        "request",
        lambda request: elsewhere.append(request.url) if not request.url.startswith((url, "data:", "blob:")) else None,
    )
    page.goto(url)
    yield page
    page.close()
    assert elsewhere == []


def spoken(page, key="speak"):
    """What the audio element of the page plays."""
    source = page.locator(f"#{key}-audio audio").first
    source.wait_for(state="attached")
    page.wait_for_function(f"document.querySelector('#{key}-audio audio').currentSrc.includes('/file=')")
    address = source.evaluate("audio => audio.currentSrc")
    response = page.request.get(address)
    wav, rate = soundfile.read(io.BytesIO(response.body()))
    return wav, rate


def played(page, key):
    """Play the sound to its end; return how long it was."""
    return page.locator(f"#{key}-audio audio").first.evaluate(
        "audio => new Promise((done, fail) => { audio.onended = () => done(audio.currentTime);"
        " audio.onerror = () => fail(audio.error.message); audio.play().catch(fail); })"
    )


def test_a_browser_types_and_hears_and_sees(page, voice):
    page.locator("#speak-text textarea").fill("Hello from the browser.")
    page.locator("#speak-seed input").fill("5")
    page.locator("#speak-button").click()
    wav, rate = spoken(page)
    expected = voice("Hello from the browser.", speaker="ann", seed=5)
    assert len(wav) / rate == pytest.approx(expected.seconds, abs=0.01) and np.sqrt(np.mean(wav**2)) > 1e-3
    assert played(page, "speak") == pytest.approx(expected.seconds, abs=0.05)
    image = page.locator("#speak-image img")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    page.wait_for_function("document.querySelector('#speak-words').innerText.includes('browser')")
    assert str(round(expected.words[-1].start_seconds, 3)) in page.locator("#speak-words").inner_text()
    assert page.locator("#speak-notes").count() == 0
    with page.expect_download() as waiting:
        page.locator("#speak-json").click()
    values = json.loads(waiting.value.path().read_text())
    assert values["seed"] == 5 and values["words"][0]["text"] == "Hello"
    with page.expect_download() as waiting:
        page.locator("#speak-wav").click()
    assert soundfile.info(waiting.value.path()).frames == len(expected.wav)
    if folder := os.environ.get("FLOWTRON_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/page.png", full_page=True)


def test_a_browser_compares_two_settings(page, voice):
    page.locator("#tab-compare-button, button[role=tab]:has-text('Compare')").first.click()
    page.locator("#compare-text textarea").fill("Hello twice.")
    page.locator("#compare-button").click()
    for key, speaker, seed in (("a", "ann", 1234), ("b", "ben", 1235)):
        wav, rate = spoken(page, key)
        assert (
            page.locator(f"#{key}-image img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
        )
        assert len(wav) / rate == pytest.approx(voice("Hello twice.", speaker=speaker, seed=seed).seconds, abs=0.01)


def toast(page, words):
    page.locator(".toast-wrap", has_text=words).wait_for()
    return page.locator(".toast-wrap").inner_text()


def test_a_browser_is_told_that_a_text_is_too_long(page):
    page.locator("#speak-text textarea").fill("word " * 100)
    page.locator("#speak-button").click()
    assert "more than 200" in toast(page, "characters")


def test_two_browsers_at_once_get_their_own(browser, url, voice):
    pages = [browser.new_page() for _ in range(2)]
    texts = ["A short one.", "And a considerably longer one than that, for the second client."]
    for page, text in zip(pages, texts):
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("#speak-text textarea").fill(text)
    for page in pages:
        page.locator("#speak-button").click()
    for page, text in zip(pages, texts):
        wav, rate = spoken(page)
        assert len(wav) / rate == pytest.approx(voice(text, speaker="ann").seconds, abs=0.01)
        page.close()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_a_browser_hears_a_speaker_between_two(page, voice):
    open_tab(page, "Between two voices")
    page.locator("#between-text textarea").fill("Somewhere in between.")
    page.locator("#between-weight input[type=number]").fill("0.25")
    page.locator("#between-rate input[type=number]").fill("0.8")
    page.locator("#between-rate input[type=number]").press("Tab")
    page.locator("#between-button").click()
    wav, _ = spoken(page, "between")
    from flowtron.app import blend
    from flowtron.inference import DEFAULT_SIGMA

    expected = blend(Service({"tiny": voice}), "Somewhere in between.", "ann", "ben", 0.25, DEFAULT_SIGMA, 1234, 0.8)
    assert len(wav) == len(expected.wav) and np.abs(wav - expected.wav).max() < 1e-3


def test_a_browser_uploads_a_reference_and_hears_its_style(page, voice, tmp_path):
    open_tab(page, "Style of a recording")
    page.locator("#style-reference input[type=file]").set_input_files(write_wav(tmp_path / "reference.wav", 1.0))
    page.locator("#style-reference audio, #style-reference [data-testid^=waveform]").first.wait_for(state="attached")
    page.locator("#style-text textarea").fill("In the style of a tone.")
    page.locator("#style-transcript textarea").fill("A tone is heard.")
    page.locator("#style-button").click()
    wav, _ = spoken(page, "style")
    from flowtron.app import style

    asked = ("In the style of a tone.", "ann", str(tmp_path / "reference.wav"), "A tone is heard.", 0.5, 1234)
    expected = style(Service({"tiny": voice}), *asked)
    assert len(wav) == len(expected.wav) and np.abs(wav - expected.wav).max() < 1e-3


def test_a_browser_is_told_that_an_upload_is_broken(page, tmp_path):
    open_tab(page, "Style of a recording")
    (tmp_path / "broken.wav").write_bytes(b"RIFF junk" * 50)
    page.locator("#style-transcript textarea").fill("What was said.")
    page.locator("#style-button").click()
    assert "record or upload one" in toast(page, "there is no reference")
    page.locator("#style-reference input[type=file]").set_input_files(tmp_path / "broken.wav")
    page.locator("#style-reference audio, #style-reference [data-testid^=waveform]").first.wait_for(state="attached")
    page.locator("#style-button").click()
    told = toast(page, "not a readable sound file")
    assert "the reference" in told and "/tmp" not in told


def test_a_browser_is_told_that_an_upload_is_too_long(page, tmp_path):
    open_tab(page, "Style of a recording")
    page.locator("#style-reference input[type=file]").set_input_files(write_wav(tmp_path / "long.wav", 20))
    page.locator(".toast-wrap").wait_for()
    assert "size" in page.locator(".toast-wrap").inner_text().lower()


def test_speakers_of_different_models_and_wordless_references_are_refused(voice, tmp_path):
    from flowtron.app import blend, style

    service = Service({"one": voice, "two": Synthesizer.load(save_tiny_voice(tmp_path / "other"))}, LIMITS)
    with pytest.raises(InputError, match="of different models"):
        blend(service, "Hi.", "one/ann", "two/ann", 0.5, 0.5, 1)
    reference = str(write_wav(tmp_path / "a.wav"))
    for transcript, told in (("...", "transcript"), ("a" * 201, "transcript"), ("\u0635\u0628", "no symbol")):
        with pytest.raises(InputError, match=told):
            style(service, "Hi.", "one/ann", reference, transcript, 0.5, 1)


def test_a_reference_may_not_be_long(voice, tmp_path):
    write_wav(tmp_path / "long.wav", seconds=31)
    from flowtron.app import style

    with pytest.raises(InputError, match="the reference has 31 s, more than 30"):
        style(Service({"tiny": voice}, LIMITS), TEXT, "ann", str(tmp_path / "long.wav"), "A tone is heard.", 0.5, 1)


def test_the_style_of_a_reference_is_its_tempo_too(voice, tmp_path):
    from flowtron.app import style
    from flowtron.data import Utterance
    from flowtron.style import Posterior, encode, tempo

    path = write_wav(tmp_path / "a.wav", 1.0)
    evidence = encode(voice, [Utterance(path, "A tone is heard.", "ann")], "ann")
    posterior, fast = Posterior.of([evidence[0].z], 0.5), tempo(voice, evidence)
    assert abs(fast - 1) > 0.1
    expected = voice.render(TEXT, "ann", z=posterior.source(1), rate=fast ** (1 - posterior.variance))
    spoken = style(Service({"tiny": voice}, LIMITS), TEXT, "ann", str(path), "A tone is heard.", 0.5, 1)
    assert len(spoken.wav) == len(expected.wav) != len(voice.render(TEXT, "ann", z=posterior.source(1)).wav)
    assert np.abs(spoken.wav - expected.wav).max() < 1e-6


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_command_tells_a_script_where_it_listens(host, tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: asked.update(port=sockets[0].getsockname()[1]))
    folder = str(save_tiny_voice(tmp_path / "tiny"))
    assert main(["serve", folder, "--port", "0", "--host", host, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    shown = f"[{host}]" if ":" in host else host
    assert told == {"url": f"http://{shown}:{asked['port']}", "voices": ["ann", "ben"]}


def test_requests_cut_off_by_the_end_of_the_server_are_no_faults():
    def record(error):
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "", None, (type(error), error, None))

    assert is_fault(record(ValueError())) and not is_fault(record(asyncio.CancelledError()))


@pytest.mark.parametrize("option", ["--max-text", "--max-upload", "--max-queue"])
def test_a_limit_that_lets_nothing_in_is_a_sentence(option, capsys):
    assert main(["serve", "no/such/voice", "--port", "0", option, "0"]) == 2
    assert f"{option} is 0" in capsys.readouterr().err


def is_ended(connection):
    """Whether the other side ends a connection within a few seconds."""
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_connections_without_a_whole_request_end(url, monkeypatch):
    monkeypatch.setattr("flowtron.connections.HEADER_SECONDS", 0.5)
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    for begun in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(address) as connection:
            connection.sendall(begun)
            if begun.endswith(b"\r\n\r\n"):  # the next request may take as long again
                assert connection.recv(15).startswith(b"HTTP/1.1 200")
                while b"}" not in connection.recv(4096):
                    pass
                connection.sendall(b"GET /hea")
            assert is_ended(connection)


def test_a_request_may_take_longer_than_its_head(voice, monkeypatch):
    monkeypatch.setattr("flowtron.connections.HEADER_SECONDS", 0.3)
    slow = SlowVoice(voice)
    with serving(Service({"tiny": slow}, LIMITS)) as url, ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/synthesis", json={"text": "Hello."}, timeout=60)
        assert slow.asked.wait(30)
        time.sleep(1)
        slow.go.set()
        assert answer.result().status_code == 200


def test_connections_have_a_limit(url, client, monkeypatch):
    monkeypatch.setattr("flowtron.connections.MAX_CONNECTIONS", 3)
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        assert all(is_ended(connection) for connection in several[3:])
    monkeypatch.undo()
    assert client.get("/health").status_code == 200
