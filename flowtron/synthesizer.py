"""The object that speaks: text in, speech out, for one text or many, short or long.

import flowtron
voice = flowtron.load("runs/demo/checkpoints/00010000")
voice("Hello.", speaker="heart", sigma=0.1, seed=1).save("hello.wav")
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from flowtron.audio import AudioSettings, WavWriter
from flowtron.checkpoint import VOICES as VOICES
from flowtron.checkpoint import load_model
from flowtron.checkpoint import locate as locate
from flowtron.device import choose_device
from flowtron.errors import InputError
from flowtron.inference import (
    DEFAULT_SIGMA,
    PATH_SHARE,
    Latent,
    SamplingOptions,
    Synthesized,
    Utterance,
    badness,
    fitted,
    pack_weights,
    synthesize_mels,
)
from flowtron.kernels.step_weights import StepWeights
from flowtron.model import AcousticModel, Flowtron
from flowtron.passages import Passage, passages
from flowtron.speech import Interval, Narration, Speech
from flowtron.text import SYMBOLS, TokenizedText, Tokenizer
from flowtron.vocoder import Vocoder, load_vocoder

MAX_BATCH = 16
CHUNK_FRAMES = 64  # that a vocoder is given at a time when sound is streamed
DENSE_ATTENTION = 1 << 25  # numbers in the attention of a joined text; a longer text's is sparse
LEAST_WEIGHT = 1e-6  # of sparse attention


def bundled_voices() -> list[str]:
    """Names of the voices that come with the package."""
    return sorted(path.name for path in VOICES.glob("*") if (path / "model.json").is_file())


class Synthesizer:
    """A model with its tokenizer, speakers and vocoder."""

    def __init__(
        self,
        model: AcousticModel,
        tokenizer: Tokenizer,
        speakers: Sequence[str],
        settings: AudioSettings,
        vocoder: Vocoder,
        weights: Sequence[StepWeights] | None = None,
        path_width: float = SamplingOptions.path_width / PATH_SHARE,
    ) -> None:
        """Put the parts together.

        Args:
            model, tokenizer, speakers, settings, vocoder: the parts.
            weights: from `pack_weights`, choose the compiled kernel.
            path_width: of the path that the model was trained along, in frames.
        """
        self.path_width = path_width
        self.model, self.tokenizer, self.vocoder, self.weights = model.eval(), tokenizer, vocoder, weights
        self.speakers, self.settings = list(speakers), settings

    @classmethod
    def load(
        cls,
        path: str | Path,
        vocoder: str | Path | None = None,
        device: str = "cpu",
        engine: str = "auto",
        dtype: str = "float32",
    ) -> "Synthesizer":
        """Load a checkpoint folder, the best of a training run, or a bundled voice by its name.

        The vocoder None is the light one for a bundled voice, whose speakers it was trained on, and Griffin-Lim for
        others; engine and dtype are those of `pack_weights`.

        Raises:
            InputError: there is no such checkpoint or voice, the vocoder was made for other mels, or the engine or
                dtype cannot be had.
        """
        path = locate(path)
        if vocoder is None:
            vocoder = "light" if path.resolve().parent == VOICES.resolve() else "griffin_lim"
        loaded = load_model(path, str(choose_device(device)))
        config = loaded.config
        # Spelling and pronunciation were mixed for training; a dictionary word is pronounced when it is known.
        tokenizer = Tokenizer(
            tuple(loaded.symbols or SYMBOLS), tuple(config.data.text_cleaners), 1.0, config.data.keep_ambiguous
        )
        settings = config.audio_settings()
        weights = pack_weights(loaded.model, engine, dtype)
        sound = load_vocoder(vocoder, settings=settings)
        voice = cls(loaded.model, tokenizer, loaded.speakers, settings, sound, weights, config.train.path_width)
        # What the first sentence would wait for otherwise: modules that are imported at first use, the dictionary.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for passage in passages("Ready, 1."):
                voice._tokenize(passage.text)
        return voice

    @property
    def flowtron(self) -> Flowtron:
        """The model, where only a Flowtron will do.

        Raises:
            InputError: it is a Tacotron 2.
        """
        if not isinstance(self.model, Flowtron):
            raise InputError("this model is a Tacotron 2, which has no z to work with; name a Flowtron's checkpoint.")
        return self.model

    def speaker_id(self, speaker: str | int | None) -> int:
        """Index of a speaker, by name or number; None is the first.

        Raises:
            InputError: there is no such speaker.
        """
        if speaker is None:
            return 0
        if str(speaker) in self.speakers:
            return self.speakers.index(str(speaker))
        n_speakers = self.model.n_speakers
        if str(speaker).isdecimal() and int(speaker) < n_speakers:
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
            text: what to say; several sentences are spoken one by one and joined with pauses (see `passages`).
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
        split = [list(passages(each)) for each in texts]
        spoken = self._speak([passage for each in split for passage in each], speaker, sampling, seed, attempts)
        at = iter(spoken)
        joined = []
        for each, whole in zip(split, texts):
            results = [next(at) for _ in each]
            parts = [part for part in results if isinstance(part, Speech)]
            errors = [error for error in results if isinstance(error, InputError)]
            if not parts:
                raise errors[0]
            speech = join(parts, whole)
            joined.append(replace(speech, notes=[*speech.notes, *(f"left out: {error}" for error in errors)]))
        return joined[0] if isinstance(text, str) else joined

    def stream(
        self,
        text: str,
        speaker: str | int | None = None,
        sigma: float = DEFAULT_SIGMA,
        seed: int = 1234,
        attempts: int = 2,
        batch: int = 1,
        **options: object,
    ) -> Iterator[Speech]:
        """Speak a text passage by passage, each as soon as it is ready, in bounded memory.

        The sound of all of them, with the silence around each, is what `__call__` gives for the whole text.

        Args:
            text, speaker, sigma, seed, attempts, options: as in `__call__`.
            batch: passages computed at once; more are faster, the first comes later.

        Raises:
            InputError: as `__call__`.
        """
        for spoken, _ in self._stream(text, speaker, self._options(sigma, options), seed, attempts, batch):
            yield self._with_sound(spoken)

    def stream_wav(
        self,
        text: str,
        speaker: str | int | None = None,
        sigma: float = DEFAULT_SIGMA,
        seed: int = 1234,
        attempts: int = 2,
        **options: object,
    ) -> Iterator[np.ndarray]:
        """Speak a text as chunks of sound (T_samples,), the vocoder working a fraction of a second at a time.

        Args and Raises: as in `__call__`.
        """
        for spoken, _ in self._stream(text, speaker, self._options(sigma, options), seed, attempts, 1):
            yield self._silence(spoken.before_seconds)
            with torch.inference_mode():
                for wav in self.vocoder.stream(spoken.mel.float().split(CHUNK_FRAMES, 1)):
                    yield wav.cpu().numpy()
            yield self._silence(spoken.after_seconds)

    def speak_to_file(
        self,
        text: str,
        path: str | Path,
        speaker: str | int | None = None,
        sigma: float = DEFAULT_SIGMA,
        seed: int = 1234,
        attempts: int = 2,
        progress: Callable[[float], None] = lambda share: None,
        **options: object,
    ) -> Narration:
        """Speak a text of any length into a 16-bit wav, holding no more than a few sentences at a time.

        The file appears when it is complete.

        Args:
            text, speaker, sigma, seed, attempts, options: as in `__call__`.
            path: the wav to write.
            progress: called with the share of the text that is spoken.

        Raises:
            InputError: as `__call__`, or the folder does not exist.
        """
        sampling = self._options(sigma, options)
        narration = Narration(text, self.settings.sample_rate)
        with WavWriter(path, self.settings.sample_rate) as file:
            for spoken, share in self._stream(text, speaker, sampling, seed, attempts, MAX_BATCH):
                part = self._with_sound(spoken)
                narration.add(part)
                for wav in (self._silence(part.before_seconds), part.wav, self._silence(part.after_seconds)):
                    file.write(wav)
                progress(share)
        return narration

    def render(
        self,
        text: str,
        speaker: str | int | None = None,
        z: Latent | None = None,
        durations: Tensor | None = None,
        attention: Tensor | None = None,
        sigma: float = DEFAULT_SIGMA,
        seed: int = 1234,
        **options: object,
    ) -> Speech:
        """Speak a text at once, unsplit, with what would be drawn, predicted or computed for it given instead.

        Args:
            text, speaker, sigma, seed, options: as in `__call__`.
            z: latent (n_mels, T_mel), or a function that gives one for a number of frames. A latent,
                or a function beside durations, is taken for a recording's and decoded along as soft a path as encoded.
            durations: (T_text,) frames of every token.
            attention: (n_flows, T_mel, T_text) in natural order of time.

        Raises:
            InputError: as `__call__`, or what is given does not fit the text's tokens.
        """
        is_recorded = isinstance(z, Tensor) or (z is not None and durations is not None)
        sampling = self._options(sigma, {"path_width": self.path_width} | options if is_recorded else options)
        tokenized = self._tokenize(text)
        if isinstance(tokenized, InputError):
            raise tokenized
        n_tokens = len(tokenized.tokens)
        for name, given in (("durations", durations), ("attention", attention)):
            if given is not None and given.shape[-1] != n_tokens:
                raise InputError(
                    f"the {name} are of {given.shape[-1]} tokens, but {text!r} has {n_tokens}; give the text that they "
                    "were made with."
                )
        if isinstance(z, Tensor) and durations is None and attention is not None:
            z = fitted(z, attention.shape[1])
        device = next(self.model.parameters()).device
        speaker_id = self.speaker_id(speaker)
        (result,) = synthesize_mels(
            self.model,
            [Utterance(tokenized.tokens, speaker_id, seed)],
            sampling if attention is None else replace(sampling, max_frames=attention.shape[1], gate_threshold=1.0),
            None if z is None else [z],
            None if attention is None else [matrix[None].to(device) for matrix in attention],
            self.weights,
            None if durations is None else [durations],
        )
        return self._with_sound(self._speech(Passage(text), speaker_id, tokenized, result, sampling, seed))

    def _options(self, sigma: float, options: dict[str, object]) -> SamplingOptions:
        known = SamplingOptions.__dataclass_fields__
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"{', '.join(unknown)}: no options of sampling ({', '.join(known)}); correct them.")
        return SamplingOptions(**{"path_width": PATH_SHARE * self.path_width, **options}, sigma=sigma)  # type: ignore[arg-type]

    def _silence(self, seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * self.settings.sample_rate), dtype=np.float32)

    def _with_sound(self, speech: Speech) -> Speech:
        with torch.inference_mode():
            return replace(speech, wav=self.vocoder(speech.mel[None].float())[0].cpu().numpy())

    def _stream(
        self,
        text: str,
        speaker: str | int | None,
        options: SamplingOptions,
        seed: int,
        attempts: int,
        batch: int,
    ) -> Iterator[tuple[Speech, float]]:
        """Yield passages without their sound, and the share of the text spoken by then."""
        if type(batch) is not int or batch < 1:
            raise InputError(f"batch is {batch!r}, expected a whole number above 0.")
        spoken_characters, any_spoken = 0, False
        left_out: list[InputError] = []  # not told yet: of a text with nothing to speak, they are the error
        waiting = passages(text)
        while group := list(islice(waiting, batch)):
            for passage, spoken in zip(group, self._speak_silently(group, speaker, options, seed, attempts)):
                spoken_characters += len(passage.text)
                if isinstance(spoken, InputError):
                    left_out.append(spoken)
                else:
                    any_spoken = True
                while any_spoken and left_out:
                    warnings.warn(f"left out: {left_out.pop(0)}", stacklevel=3)
                if not isinstance(spoken, InputError):
                    yield spoken, min(1.0, spoken_characters / len(text))
        if left_out:
            raise left_out[0]

    def _speak(
        self, parts: list[Passage], speaker: str | int | None, options: SamplingOptions, seed: int, attempts: int
    ) -> list[Speech | InputError]:
        silent = self._speak_silently(parts, speaker, options, seed, attempts)
        return [part if isinstance(part, InputError) else self._with_sound(part) for part in silent]

    def _speak_silently(
        self, parts: list[Passage], speaker: str | int | None, options: SamplingOptions, seed: int, attempts: int
    ) -> list[Speech | InputError]:
        """Mels of passages; an error takes the place of one that has nothing to say."""
        if attempts < 1:
            raise InputError(f"attempts is {attempts}, but speech takes at least one; give 1 or more.")
        speaker_id = self.speaker_id(speaker)
        tokenized = [self._tokenize(part.text) for part in parts]
        results: dict[int, Synthesized] = {}
        seeds: dict[int, int] = {}
        lengths = {i: len(each.tokens) for i, each in enumerate(tokenized) if isinstance(each, TokenizedText)}
        waiting = sorted(lengths, key=lambda i: lengths[i])
        batch = max(1, MAX_BATCH // options.draws)
        for attempt in range(attempts):
            failed = []
            for start in range(0, len(waiting), batch):
                chosen = waiting[start : start + batch]
                utterances = [
                    Utterance(each.tokens, speaker_id, seed + attempt)
                    for each in (tokenized[i] for i in chosen)
                    if isinstance(each, TokenizedText)
                ]
                for i, result in zip(chosen, synthesize_mels(self.model, utterances, options, weights=self.weights)):
                    if i not in results or badness(result.alignment) < badness(results[i].alignment):
                        results[i], seeds[i] = result, seed + attempt
                    if not result.alignment.is_complete:
                        failed.append(i)
            waiting = failed
            if not waiting:
                break
        return [
            each
            if isinstance(each, InputError)
            else self._speech(part, speaker_id, each, results[i], options, seeds[i])
            for i, (part, each) in enumerate(zip(parts, tokenized))
        ]

    def _tokenize(self, text: str) -> TokenizedText | InputError:
        try:
            tokenized = self.tokenizer.encode_typed(text)
        except InputError as error:
            return error
        if not tokenized.words:
            return InputError(f"{text!r} has no word that this model can speak; write it in its characters.")
        return tokenized

    def _speech(
        self,
        part: Passage,
        speaker_id: int,
        tokenized: TokenizedText,
        result: Synthesized,
        options: SamplingOptions,
        seed: int,
    ) -> Speech:
        seconds = np.concatenate([[0.0], np.cumsum(result.durations.numpy())])
        seconds = seconds * self.settings.hop_length / self.settings.sample_rate
        symbols = self.tokenizer.symbols
        notes = [f"no symbol for {character!r}, left out" for character in tokenized.unknown]
        if not result.alignment.is_complete:
            notes.append(f"the attention failed its check ({result.alignment.complaint}); listen, or try another seed")
        return Speech(
            part.text,
            self.speakers[speaker_id] if speaker_id < len(self.speakers) else str(speaker_id),
            np.zeros(0, dtype=np.float32),
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
            part.before_seconds,
            part.after_seconds,
        )


def join(parts: list[Speech], text: str) -> Speech:
    """Join the passages of a text, with the silences around them; attention becomes block-diagonal.

    The mel and z of the silences are left out, as the passages were computed without them. The attention of a long
    text is a sparse tensor.
    """
    first = parts[0]
    if len(parts) == 1 and not first.before_seconds and not first.after_seconds:
        return replace(first, text=text)
    narration = Narration(text, first.sample_rate)
    wavs: list[np.ndarray] = []
    for part in parts:
        narration.add(part)
        before, after = (
            np.zeros(round(seconds * first.sample_rate), dtype=part.wav.dtype)
            for seconds in (part.before_seconds, part.after_seconds)
        )
        wavs += [before, part.wav, after]

    def beside(mels: list[Tensor]) -> Tensor:
        return torch.cat(mels, 1)

    return replace(
        first,
        text=text,
        wav=np.concatenate(wavs),
        mel=beside([part.mel for part in parts]),
        attention=_block_diagonal([part.attention for part in parts]),
        z=beside([part.z for part in parts]),
        words=narration.words,
        tokens=narration.tokens,
        alignment=max((part.alignment for part in parts), key=badness),
        notes=narration.notes,
        before_seconds=0.0,
        after_seconds=0.0,
    )


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """Put attentions (n_flows, T_mel, T_text) along the diagonal, sparse where that would be very large.

    A sparse weight takes seven times the memory of a dense one, so those below `LEAST_WEIGHT` are left out there.
    """
    frames, tokens = (sum(block.shape[d] for block in blocks) for d in (1, 2))
    shape = (len(blocks[0]), frames, tokens)
    if len(blocks[0]) * frames * tokens <= DENSE_ATTENTION:
        return torch.stack([torch.block_diag(*(block[k] for block in blocks)) for k in range(len(blocks[0]))])
    indices, values = [], []
    offset = torch.zeros(3, 1, dtype=torch.long)
    for block in blocks:
        sparse = block.where(block >= LEAST_WEIGHT, 0.0).to_sparse()
        indices.append(sparse.indices() + offset)
        values.append(sparse.values())
        offset = offset + torch.tensor([[0], [block.shape[1]], [block.shape[2]]])
    return torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), shape, check_invariants=True).coalesce()
