"""The web page of `flowtron serve`: speak, compare, interpolate between voices, transfer a style.

Needs the extra `app`.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from flowtron.errors import InputError
from flowtron.formats import encode
from flowtron.inference import DEFAULT_SIGMA
from flowtron.service import SEED_LIMIT, Service, describe
from flowtron.speech import Speech

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

FILE_SECONDS = 3600  # that files for download are kept
EXAMPLE = "It is well known that deep generative models have a rich latent space."


def picture(speech: Speech) -> np.ndarray:
    """Mel and attention of an utterance as pixels (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from flowtron.plots import speech_figure

    canvas = FigureCanvasAgg(speech_figure(speech))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def times(speech: Speech) -> list[list[Any]]:
    """Rows of word, start and end in seconds."""
    return [[word.text, round(word.start_seconds, 3), round(word.end_seconds, 3)] for word in speech.words]


class Downloads:
    """Files for download, in a folder of their own, deleted after a while."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flowtron_"))

    def add(self, speech: Speech) -> tuple[str, str]:
        """Write an utterance as wav and JSON; return the paths."""
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > FILE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        wav, values = folder / "speech.wav", folder / "speech.json"
        wav.write_bytes(encode(speech.wav, speech.sample_rate, "wav"))
        values.write_text(json.dumps(describe(speech), indent=1, ensure_ascii=False), encoding="utf-8")
        return str(wav), str(values)

    def close(self) -> None:
        """Delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def build_page(service: Service, downloads: Downloads) -> Any:
    """Build the gradio page."""
    import gradio as gr

    names = list(service.choices)

    def told(work: Callable[[], Any]) -> Any:
        """Do the work of a click; an error becomes its sentence."""
        try:
            return work()
        except InputError as problem:
            raise gr.Error(str(problem), print_exception=False) from None

    def sound(speech: Speech) -> tuple[int, np.ndarray]:
        return speech.sample_rate, (speech.wav.clip(-1, 1) * 32767).astype(np.int16)

    def everything(speech: Speech) -> tuple[Any, ...]:
        wav, values = downloads.add(speech)
        notes = gr.update(value=" ".join(speech.notes), visible=bool(speech.notes))
        return sound(speech), picture(speech), times(speech), wav, values, notes

    def speak(text: str, name: str, sigma: float, rate: float, seed: float) -> tuple[Any, ...]:
        return told(lambda: everything(service.speak(text or "", name, sigma, rate, _whole(seed))))

    def compare(text: str, *settings: Any) -> tuple[Any, ...]:
        def work() -> tuple[Any, ...]:
            results: list[Any] = []
            for name, sigma, rate, seed in (settings[:4], settings[4:]):
                speech = service.speak(text or "", name, sigma, rate, _whole(seed))
                results += [sound(speech), picture(speech)]
            return tuple(results)

        return told(work)

    def between(
        text: str, first: str, second: str, weight: float, sigma: float, rate: float, seed: float
    ) -> tuple[Any, ...]:
        return told(lambda: everything(blend(service, text or "", first, second, weight, sigma, _whole(seed), rate)))

    def transfer(
        text: str, name: str, reference: str | None, transcript: str, strength: float, seed: float
    ) -> tuple[Any, ...]:
        return told(
            lambda: everything(style(service, text or "", name, reference, transcript or "", strength, _whole(seed)))
        )

    def text_box(key: str) -> Any:
        return gr.Textbox(EXAMPLE, label="Text", lines=3, elem_id=f"{key}-text")

    def voice_list(key: str, label: str = "Voice", start: int = 0) -> Any:
        return gr.Dropdown(names, value=names[start % len(names)], label=label, elem_id=f"{key}-voice")

    def seed_box(key: str, seed: int = 1234) -> Any:
        return gr.Number(
            seed,
            label="Seed",
            info="The same seed gives the same speech again.",
            precision=0,
            minimum=0,
            maximum=SEED_LIMIT - 1,
            elem_id=f"{key}-seed",
        )

    def sampling(key: str, seed: int = 1234) -> tuple[Any, Any, Any]:
        return (
            gr.Slider(
                *(0, service.limits.sigma, DEFAULT_SIGMA),
                step=0.001,
                label="Sigma",
                info="More is livelier, too much unclear.",
                elem_id=f"{key}-sigma",
            ),
            gr.Slider(0.5, 2, 1, step=0.05, label="Rate", info="2 is twice as fast.", elem_id=f"{key}-rate"),
            seed_box(key, seed),
        )

    def player(key: str) -> Any:
        # The browser's own player: it works for long speech, and with a keyboard.
        return gr.Audio(
            label="Speech",
            format="wav",
            interactive=False,
            buttons=["download"],
            waveform_options=gr.WaveformOptions(show_recording_waveform=False),
            elem_id=f"{key}-audio",
        )

    def pictures(key: str) -> Any:
        # No label, which would lie over the picture's titles, and no button of gradio's that shares elsewhere.
        return gr.Image(
            label="Mel and attention",
            show_label=False,
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id=f"{key}-image",
        )

    def results(key: str) -> list[Any]:
        audio = player(key)
        image = pictures(key)
        words = gr.Dataframe(
            headers=["word", "start", "end"],
            label="Times in seconds",
            interactive=False,
            max_height=320,
            elem_id=f"{key}-words",
        )
        with gr.Row():
            wav = gr.DownloadButton("Download wav", elem_id=f"{key}-wav")
            values = gr.DownloadButton("Download JSON", elem_id=f"{key}-json")
        notes = gr.Textbox(label="Notes", interactive=False, visible=False, elem_id=f"{key}-notes")
        return [audio, image, words, wav, values, notes]

    with gr.Blocks(title="Flowtron", analytics_enabled=False, delete_cache=(600, FILE_SECONDS)) as page:
        gr.Markdown(
            "# Flowtron\nText-to-speech with an autoregressive flow. The HTTP API is described at [/docs](/docs)."
        )
        with gr.Tab("Speak", elem_id="tab-speak"), gr.Row():
            with gr.Column():
                asked = [text_box("speak"), voice_list("speak"), *sampling("speak")]
                button = gr.Button("Speak", variant="primary", elem_id="speak-button")
            with gr.Column():
                button.click(speak, asked, results("speak"), api_visibility="private")
        with gr.Tab("Compare", elem_id="tab-compare"):
            asked, answers = [text_box("compare")], list[Any]()
            button = gr.Button("Speak both", variant="primary", elem_id="compare-button")
            with gr.Row():
                for number, side in enumerate("ab"):
                    with gr.Column():
                        asked += [voice_list(side, f"Voice {side.upper()}", number), *sampling(side, 1234 + number)]
                        answers += [player(side), pictures(side)]
            button.click(compare, asked, answers, api_visibility="private")
        with gr.Tab("Between two voices", elem_id="tab-between"), gr.Row():
            with gr.Column():
                asked = [
                    text_box("between"),
                    voice_list("first", "First voice"),
                    voice_list("second", "Second voice", 1),
                ]
                asked.append(gr.Slider(0, 1, 0.5, step=0.01, label="Share of the second", elem_id="between-weight"))
                asked += sampling("between")
                button = gr.Button("Speak", variant="primary", elem_id="between-button")
            with gr.Column():
                button.click(between, asked, results("between"), api_visibility="private")
        with gr.Tab("Style of a recording", elem_id="tab-style"), gr.Row():
            with gr.Column():
                asked = [text_box("style"), voice_list("style")]
                asked.append(
                    gr.Audio(
                        sources=["upload", "microphone"],
                        type="filepath",
                        label="Reference",
                        buttons=["download"],
                        elem_id="style-reference",
                    )
                )
                asked.append(gr.Textbox(label="What is said in the reference", elem_id="style-transcript"))
                asked.append(
                    gr.Slider(
                        *(0.01, 4, 0.5),
                        step=0.01,
                        label="Lambda",
                        info="Less is closer to the reference.",
                        elem_id="style-lambda",
                    )
                )
                asked.append(seed_box("style"))
                button = gr.Button("Speak", variant="primary", elem_id="style-button")
            with gr.Column():
                button.click(transfer, asked, results("style"), api_visibility="private")
    page.queue(default_concurrency_limit=4, max_size=service.limits.queue)
    return page


def _whole(seed: float | None) -> int:
    return 1234 if seed is None else int(seed)


def blend(
    service: Service,
    text: str,
    first: str,
    second: str,
    weight: float,
    sigma: float,
    seed: int,
    rate: float = 1.0,
) -> Speech:
    """Speak as a speaker between two of one voice.

    Raises:
        InputError: the two are of different models, or a value is beyond its limit.
    """
    from flowtron.style import blend_speakers

    service.check(text, sigma, rate, seed)
    a, b = service.choose(first), service.choose(second)
    if a.voice is not b.voice:
        raise InputError(f"{a.name} and {b.name} are of different models; choose two speakers of one.")

    def work() -> Speech:
        voice, name = blend_speakers(a.voice, a.speaker, b.speaker, float(weight))
        return voice(text, speaker=name, sigma=sigma, rate=rate, seed=seed)

    return service.run(work)


def style(
    service: Service, text: str, name: str, reference: str | None, transcript: str, strength: float, seed: int
) -> Speech:
    """Speak in the style of a recording.

    Raises:
        InputError: there is no recording or transcript, or they cannot be used.
    """
    from flowtron.data import Utterance
    from flowtron.style import Posterior, encode, tempo

    service.check(text, DEFAULT_SIGMA, 1.0, seed)
    if not reference:
        raise InputError("there is no reference; record or upload one.")
    if not any(character.isalnum() for character in transcript):
        raise InputError("the transcript of the reference is empty; write what is said in it.")
    if len(transcript) > service.limits.text_characters:
        raise InputError(f"the transcript has {len(transcript)} characters, too many; use a shorter reference.")
    with contextlib.suppress(RuntimeError):  # what is no sound is told of below
        if (seconds := soundfile.info(reference).duration) > service.limits.reference_seconds:
            raise InputError(
                f"the reference has {seconds:.0f} s, more than {service.limits.reference_seconds:g}; use a shorter one."
            )
    choice = service.choose(name)

    def work() -> Speech:
        try:
            (evidence,) = encode(choice.voice, [Utterance(Path(reference), transcript, choice.speaker)], choice.speaker)
        except InputError as problem:
            # Its path on this machine is no business of the one who uploaded it.
            raise InputError(str(problem).replace(str(reference), "the reference")) from None
        posterior = Posterior.of([evidence.z], float(strength))
        rate = posterior.rate(tempo(choice.voice, [evidence]))
        rate = min(max(rate, service.limits.rate_least), service.limits.rate_most)
        return choice.voice.render(text, choice.speaker, z=posterior.source(seed), rate=rate)

    return service.run(work)


def build_app(service: Service) -> Any:
    """Build the whole application: the API, and the page on the same server."""
    import gradio as gr

    from flowtron.api import build_api

    downloads = Downloads()
    page = build_page(service, downloads)
    api = build_api(service)
    api.router.add_event_handler("shutdown", downloads.close)
    # Fonts of the system: the page loads nothing from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(
        api, page, path="/", max_file_size=service.limits.upload_bytes, theme=theme, show_error=True, footer_links=[]
    )
