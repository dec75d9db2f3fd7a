"""What the web page and the HTTP API share: voices, limits, and one queue in front of the model."""

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from flowtron.errors import InputError
from flowtron.inference import DEFAULT_SIGMA
from flowtron.passages import SPOKEN_DIGIT, spoken_length, typed_silence
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer

T = TypeVar("T")
SEED_LIMIT = 2**31


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. queue: how many may wait or be at work at once; the next one is refused."""

    text_characters: int = 2000
    upload_bytes: int = 20_000_000
    queue: int = 32
    sigma: float = 2.0
    rate_least: float = 0.25
    rate_most: float = 4.0
    silence_seconds: float = 120.0
    reference_seconds: float = 30.0


class BusyError(InputError):
    """Too many requests at once."""


class Choice(NamedTuple):
    """A speaker of one of the voices, and the name that stands for it."""

    name: str
    voice: Synthesizer
    speaker: str


class Service:
    """Voices by name, one utterance at a time: the model uses all cores, so more at once would only be slower.

    One thread does all the work: each that does some keeps memory and helpers of its own afterwards.
    """

    def __init__(self, voices: Mapping[str, Synthesizer], limits: Limits = Limits()) -> None:
        """Serve voices, each with all of its speakers.

        Raises:
            InputError: there is no voice.
        """
        if not voices:
            raise InputError("there is no voice to serve; name a checkpoint folder.")
        self.voices, self.limits = dict(voices), limits
        self.choices: dict[str, Choice] = {}
        for name, voice in self.voices.items():
            rows = voice.model.n_speakers
            for speaker in voice.speakers or [str(row) for row in range(rows)]:
                # With one voice its name would only be in the way.
                choice = speaker if len(self.voices) == 1 else f"{name}/{speaker}"
                self.choices[choice] = Choice(choice, voice, speaker)
        self._worker = ThreadPoolExecutor(1, "model")
        self._count = threading.Lock()
        self.waiting = 0

    def choose(self, name: str | None) -> Choice:
        """Return a speaker by name; the first when there is none.

        Raises:
            InputError: there is no such speaker; those that there are are named.
        """
        if not name:
            return next(iter(self.choices.values()))
        if name in self.choices:
            return self.choices[name]
        known = list(self.choices)
        listed = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        raise InputError(f"there is no voice {name[:80]!r}; choose one of {listed}.")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Let something be done with the model when it is free, in its own thread; cancelled, it makes room.

        Raises:
            BusyError: too many wait already, or the server ends.
        """
        with self._count:
            if self.waiting >= self.limits.queue:
                raise BusyError(f"{self.waiting} requests are waiting, and no more may; try again in a while.")
            try:
                future = self._worker.submit(work)
            except RuntimeError:
                raise BusyError("the server is ending; try again when it is back.") from None
            self.waiting += 1
        future.add_done_callback(self._left)
        return future

    def _left(self, future: Future[Any]) -> None:
        with self._count:
            self.waiting -= 1

    def run(self, work: Callable[[], T]) -> T:
        """Do something with the model when it is free, in its own thread, and wait for it.

        Raises:
            BusyError: too many wait already, or the server ends.
        """
        try:
            return self.submit(work).result()
        except CancelledError:
            raise BusyError("the server is ending; try again when it is back.") from None

    def close(self) -> None:
        """Take no more work, and give up what waits."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def check(self, text: str, sigma: float, rate: float, seed: int) -> None:
        """Hold a request against the limits.

        Raises:
            InputError: naming the value and the limit.
        """
        limits = self.limits
        if len(text) > limits.text_characters:
            raise InputError(
                f"the text has {len(text)} characters, more than {limits.text_characters}; send it in parts."
            )
        if (spoken := spoken_length(text)) > 2 * limits.text_characters:
            raise InputError(
                f"the text counts as {spoken} characters, a digit as {SPOKEN_DIGIT}, more than "
                f"{2 * limits.text_characters}; send it in parts."
            )
        if not text.strip():
            raise InputError("the text is empty; give at least one word.")
        if (silence := typed_silence(text)) > limits.silence_seconds:
            raise InputError(
                f"the text has pauses of {silence:g} s in all, more than {limits.silence_seconds:g}; send it in parts."
            )
        if not (math.isfinite(sigma) and 0 <= sigma <= limits.sigma):
            raise InputError(f"sigma is {sigma:g}, expected 0 to {limits.sigma:g}; give for example {DEFAULT_SIGMA}.")
        if not (math.isfinite(rate) and limits.rate_least <= rate <= limits.rate_most):
            raise InputError(
                f"rate is {rate:g}, expected {limits.rate_least:g} to {limits.rate_most:g}; give for example 1."
            )
        if not 0 <= seed < SEED_LIMIT:
            raise InputError(f"seed is {seed}, expected 0 to {SEED_LIMIT - 1}; give for example 1234.")

    def speak(
        self, text: str, name: str | None = None, sigma: float | None = None, rate: float = 1.0, seed: int = 1234
    ) -> Speech:
        """Speak a text within the limits; arguments and errors as of `order`."""
        return self.run(self.order(text, name, sigma, rate, seed))

    def order(
        self, text: str, name: str | None = None, sigma: float | None = None, rate: float = 1.0, seed: int = 1234
    ) -> Callable[[], Speech]:
        """Check a request and return what is to be done for it.

        Args:
            text: what to say.
            name: of a speaker; the first when empty.
            sigma: standard deviation of z; the default when None.
            rate: speaking rate, 2 is twice as fast.
            seed: of the draw.

        Raises:
            InputError: a value is beyond its limit, there is no such speaker, or nothing to say.
        """
        sigma = DEFAULT_SIGMA if sigma is None else sigma
        self.check(text, sigma, rate, seed)
        choice = self.choose(name)
        return lambda: choice.voice(text, speaker=choice.speaker, sigma=sigma, rate=rate, seed=seed)


def describe(speech: Speech) -> dict[str, Any]:
    """What is known of an utterance besides its sound, as JSON values: times, notes, and how the attention went."""

    def rows(intervals: list[Any]) -> list[dict[str, Any]]:
        return [{"text": i.text, "start": i.start_seconds, "end": i.end_seconds} for i in intervals]

    return {
        "text": speech.text,
        "speaker": speech.speaker,
        "seconds": speech.seconds,
        "sample_rate": speech.sample_rate,
        "sigma": speech.sigma,
        "seed": speech.seed,
        "words": rows(speech.words),
        "tokens": rows(speech.tokens),
        "alignment_complete": speech.alignment.is_complete,
        "notes": speech.notes,
    }
