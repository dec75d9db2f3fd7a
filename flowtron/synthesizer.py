"""The object that speaks: text in, speech out, for one text or many, short or long.

import flowtron
voice = flowtron.load("runs/demo/checkpoints/00010000")
voice("Hello.", speaker="heart", sigma=0.667, seed=1).save("hello.wav")
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import pysbd
import torch
from torch import Tensor

from flowtron.audio import AudioSettings
from flowtron.checkpoint import load_model
from flowtron.errors import InputError
from flowtron.inference import SamplingOptions, Synthesized, Utterance, synthesize_mels
from flowtron.model import Flowtron
from flowtron.speech import Interval, Speech
from flowtron.text import SYMBOLS, TokenizedText, Tokenizer
from flowtron.vocoder import Vocoder, load_vocoder

DEFAULT_SIGMA = 0.667
SENTENCE_PAUSE_SECONDS = 0.25
MAX_BATCH = 16
VOICES = Path(__file__).parent / "voices"
SENTENCE_ENDS = ".?!"


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, each with a mark at its end, without which a voice trails off.

    Raises:
        InputError: there is nothing to say.
    """
    sentences = [part.strip() for part in pysbd.Segmenter(language="en", clean=False).segment(text)]
    sentences = [part for part in sentences if any(c.isalnum() for c in part)]
    if not sentences:
        raise InputError(f"the text is {text!r}, with nothing to speak; give it at least one word.")
    return [s if s.rstrip("\"')]}")[-1:] in SENTENCE_ENDS or s[-1] in ",;:" else f"{s}." for s in sentences]


def bundled_voices() -> list[str]:
    """Names of the voices that come with the package."""
    return sorted(path.name for path in VOICES.glob("*") if (path / "model.json").is_file())


class Synthesizer:
    """A model with its tokenizer, speakers and vocoder."""

    def __init__(
        self,
        model: Flowtron,
        tokenizer: Tokenizer,
        speakers: Sequence[str],
        settings: AudioSettings,
        vocoder: Vocoder,
    ) -> None:
        self.model, self.tokenizer, self.vocoder = model.eval(), tokenizer, vocoder
        self.speakers, self.settings = list(speakers), settings

    @classmethod
    def load(cls, path: str | Path, vocoder: str | Path = "griffin_lim", device: str = "cpu") -> "Synthesizer":
        """Load a checkpoint folder or a bundled voice by its name.

        Raises:
            InputError: there is no such checkpoint or voice, or the vocoder was made for other mels.
        """
        if not Path(path).exists() and (VOICES / str(path) / "model.json").is_file():
            path = VOICES / str(path)
        loaded = load_model(path, device)
        config = loaded.config
        # Spelling and pronunciation were mixed for training; a dictionary word is pronounced when it is known.
        tokenizer = Tokenizer(
            tuple(loaded.symbols or SYMBOLS), tuple(config.data.text_cleaners), 1.0, config.data.keep_ambiguous
        )
        settings = config.audio_settings()
        return cls(loaded.model, tokenizer, loaded.speakers, settings, load_vocoder(vocoder, settings=settings))

    def speaker_id(self, speaker: str | int | None) -> int:
        """Index of a speaker, by name or number; None is the first.

        Raises:
            InputError: there is no such speaker.
        """
        if speaker is None:
            return 0
        if str(speaker) in self.speakers:
            return self.speakers.index(str(speaker))
        n_speakers = self.model.speaker_embedding.num_embeddings
        if str(speaker).isdigit() and int(speaker) < n_speakers:
            return int(speaker)
        names = ", ".join(self.speakers[:20]) or f"numbers below {n_speakers}"
        raise InputError(f"speaker {speaker!r} is not one of this model's ({names}); choose one of them.")

    @overload
    def __call__(self, text: str, **options: object) -> Speech: ...
    @overload
    def __call__(self, text: list[str], **options: object) -> list[Speech]: ...

    def __call__(self, text, speaker=None, sigma=DEFAULT_SIGMA, seed=1234, attempts=2, **options):
        """Speak a text, or each of a list of texts.

        Args:
            text: what to say; several sentences are spoken one by one and joined with pauses.
            speaker: name or number; the first by default.
            sigma: standard deviation of z: 0 is the most likely speech, more is livelier.
            seed: of the draw; the same seed gives the same speech, alone or in a list.
            attempts: draws at most, as long as the attention fails its check.
            options: further fields of `SamplingOptions`, such as rate or guided.

        Raises:
            InputError: there is nothing to say, no such speaker, or sigma is negative.
        """
        texts = [text] if isinstance(text, str) else list(text)
        sampling = self._options(sigma, options)
        sentences = [split_sentences(each) for each in texts]
        flat = [sentence for each in sentences for sentence in each]
        spoken = iter(self._speak(flat, speaker, sampling, seed, attempts))
        joined = [join([next(spoken) for _ in each], whole) for each, whole in zip(sentences, texts)]
        return joined[0] if isinstance(text, str) else joined

    def stream(
        self,
        text: str,
        speaker: str | int | None = None,
        sigma: float = DEFAULT_SIGMA,
        seed: int = 1234,
        attempts: int = 2,
    ) -> Iterator[Speech]:
        """Speak a text sentence by sentence, each as soon as it is ready, in bounded memory.

        The sound of all of them, with pauses as in `__call__`, is what `__call__` gives for the whole text.
        """
        sampling = self._options(sigma, {})
        for sentence in split_sentences(text):
            yield from self._speak([sentence], speaker, sampling, seed, attempts)

    @staticmethod
    def _options(sigma: float, options: dict[str, object]) -> SamplingOptions:
        if sigma < 0:
            raise InputError(f"sigma is {sigma}, but it is a standard deviation; give 0 or more, for example 0.667.")
        try:
            sampling = SamplingOptions(sigma=sigma, **options)  # type: ignore[arg-type]
        except TypeError:
            known = ", ".join(SamplingOptions.__dataclass_fields__)
            raise InputError(
                f"{', '.join(options)}: not all are options of sampling ({known}); correct them."
            ) from None
        if sampling.rate <= 0:
            raise InputError(f"rate is {sampling.rate}, but speech needs a positive one; give for example 1.2.")
        return sampling

    def _speak(
        self, sentences: list[str], speaker: str | int | None, options: SamplingOptions, seed: int, attempts: int
    ) -> list[Speech]:
        speaker_id = self.speaker_id(speaker)
        name = self.speakers[speaker_id] if speaker_id < len(self.speakers) else str(speaker_id)
        tokenized = [self.tokenizer.encode(sentence) for sentence in sentences]
        results: list[Synthesized | None] = [None] * len(sentences)
        seeds = [seed] * len(sentences)
        waiting = sorted(range(len(sentences)), key=lambda i: len(tokenized[i].tokens))
        for attempt in range(attempts):
            failed = []
            for start in range(0, len(waiting), MAX_BATCH):
                chosen = waiting[start : start + MAX_BATCH]
                utterances = [Utterance(tokenized[i].tokens, speaker_id, seed + attempt) for i in chosen]
                for i, result in zip(chosen, synthesize_mels(self.model, utterances, options)):
                    best = results[i]
                    if best is None or result.alignment.is_complete:
                        results[i], seeds[i] = result, seed + attempt
                    if not result.alignment.is_complete:
                        failed.append(i)
            waiting = failed
            if not waiting:
                break
        return [
            self._speech(sentence, name, tokens, result, options, used)
            for sentence, tokens, result, used in zip(sentences, tokenized, results, seeds)
            if result is not None
        ]

    def _speech(
        self,
        text: str,
        speaker: str,
        tokenized: TokenizedText,
        result: Synthesized,
        options: SamplingOptions,
        seed: int,
    ) -> Speech:
        with torch.inference_mode():
            wav = self.vocoder(result.mel[None].float())[0].cpu().numpy()
        seconds = np.concatenate([[0.0], np.cumsum(result.durations.numpy())])
        seconds = seconds * self.settings.hop_length / self.settings.sample_rate
        symbols = self.tokenizer.symbols
        notes = [f"no symbol for {character!r}, left out" for character in tokenized.unknown]
        if not result.alignment.is_complete:
            notes.append(f"the attention failed its check: {result.alignment}")
        return Speech(
            text,
            speaker,
            wav,
            self.settings.sample_rate,
            result.mel,
            result.attention,
            result.z,
            [Interval(w.text, float(seconds[w.start]), float(seconds[w.end])) for w in tokenized.words],
            [
                Interval(symbols[token], float(seconds[n]), float(seconds[n + 1]))
                for n, token in enumerate(tokenized.tokens)
            ],
            result.alignment,
            options.sigma,
            seed,
            notes,
        )


def join(parts: list[Speech], text: str) -> Speech:
    """Join the sentences of a text, with pauses; attention becomes block-diagonal."""
    if len(parts) == 1:
        return replace(parts[0], text=text)
    first = parts[0]
    silence = np.zeros(round(SENTENCE_PAUSE_SECONDS * first.sample_rate), dtype=first.wav.dtype)
    wavs: list[np.ndarray] = []
    words: list[Interval] = []
    tokens: list[Interval] = []
    offset = 0.0
    for part in parts:
        if wavs:
            wavs.append(silence)
            offset += len(silence) / first.sample_rate

        def shifted(intervals: list[Interval], by: float = offset) -> list[Interval]:
            return [Interval(i.text, i.start_seconds + by, i.end_seconds + by) for i in intervals]

        words += shifted(part.words)
        tokens += shifted(part.tokens)
        wavs.append(part.wav)
        offset += part.seconds
    blocks = [torch.block_diag(*(part.attention[k] for part in parts)) for k in range(len(first.attention))]

    def beside(mels: list[Tensor]) -> Tensor:
        return torch.cat(mels, 1)

    return replace(
        first,
        text=text,
        wav=np.concatenate(wavs),
        mel=beside([part.mel for part in parts]),
        attention=torch.stack(blocks),
        z=beside([part.z for part in parts]),
        words=words,
        tokens=tokens,
        alignment=min((part.alignment for part in parts), key=lambda report: report.is_complete),
        notes=[note for part in parts for note in part.notes],
    )
