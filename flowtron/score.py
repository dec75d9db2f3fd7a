"""The exact likelihood put to use: score recordings with their transcripts, find wrong transcripts and damaged sound.

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import csv
import difflib
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowtron.data import Utterance
from flowtron.encoding import Encoding, encode_batch, recorded_mel, speaker_of
from flowtron.errors import InputError
from flowtron.inference import reading_costs
from flowtron.speech import write_atomically
from flowtron.synthesizer import Synthesizer

BATCH = 8
N_DECOYS = 4
DECOYS_LOOKED_AT = 32
MUCH_THE_SAME = 0.5  # of the tokens of two texts together that stand in the same order in both
# Where a transcript is right, its alignment costs about a sixth of another one's; where it is wrong, about as much.
DOUBTFUL_TRANSCRIPT = 0.5
# In robust standard deviations among recordings of the speaker; undamaged speech of a known voice stays below 4.
DAMAGED = 5.0
# A wrong transcript makes sound unlikely too, up to here; beyond, it is the sound, which then aligns badly with any
# text, and only a hopeless transcript is called wrong.
DAMAGED_BEYOND_DOUBT, HOPELESS_TRANSCRIPT = 15.0, 0.9
FEWEST_FOR_SCALE = 5  # recordings, for a median and its deviation
WORST_SECONDS = 0.25  # length of the stretch that is pointed at


@dataclass
class Score:
    """What the likelihood says of a recording.

    utterance: the recording. nats_per_dim: −log p(mel | transcript, speaker) for each frame and channel, given also the
    recording's own alignment where the model has an aligner; nats: in sum.
    frame_nats: (T_mel,), its course per channel. transcript_doubt: 0 where the transcript is clearly better than
    others of its length, 1 where it is no better. damage: how far the recording is from its speaker's others, in
    robust standard deviations; NaN where they are too few. worst_seconds: where its least likely stretch begins.
    """

    utterance: Utterance
    nats_per_dim: float
    nats: float
    frame_nats: np.ndarray
    transcript_doubt: float
    damage: float
    worst_seconds: float

    @property
    def is_wrong_transcript(self) -> bool:
        """Whether the transcript is likely that of something else."""
        limit = HOPELESS_TRANSCRIPT if self.damage > DAMAGED_BEYOND_DOUBT else DOUBTFUL_TRANSCRIPT
        return self.transcript_doubt > limit

    @property
    def is_damaged(self) -> bool:
        """Whether the sound is likely clipped, noisy, interrupted or otherwise unlike the speaker's."""
        return not self.is_wrong_transcript and self.damage > DAMAGED

    @property
    def verdict(self) -> str:
        """In a word or two; empty where nothing is wrong."""
        return "wrong transcript" if self.is_wrong_transcript else "damaged" if self.is_damaged else ""


def robust_scores(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Distance of values (N,) from the median of their group, in deviations 1.4826 · median |v − median|.

    A group that is too small is scored among all values; NaN where these are too few as well.
    """
    scores = np.full(len(values), np.nan)
    labels = np.asarray(groups)
    for group in np.unique(labels):
        own = labels == group
        among = values[own] if own.sum() >= FEWEST_FOR_SCALE else values
        if len(among) >= FEWEST_FOR_SCALE:
            middle = np.median(among)
            deviation = 1.4826 * np.median(np.abs(among - middle))
            scores[own] = (values[own] - middle) / max(deviation, 1e-6)
    return scores


def choose_decoys(texts: Sequence[list[int]], index: int, n: int = N_DECOYS) -> list[list[int]]:
    """Other texts of the most similar length; where there are too few, the text itself in other orders too.

    A text that says much of the same is no decoy, since it fits the recording as well.
    """
    own = texts[index]
    others = {tuple(text) for text in texts} - {tuple(own)}
    nearest = sorted(others, key=lambda text: (abs(len(text) - len(own)), text))[:DECOYS_LOOKED_AT]
    matcher: difflib.SequenceMatcher[int] = difflib.SequenceMatcher(None, (), own, autojunk=False)
    chosen: list[list[int]] = []
    for text in nearest:
        matcher.set_seq1(text)
        if len(chosen) < n and matcher.ratio() < MUCH_THE_SAME:
            chosen.append(list(text))
    return chosen + [random.Random(seed).sample(own, len(own)) for seed in range(n - len(chosen))]


def doubts(
    voice: Synthesizer,
    encodings: Sequence[Encoding],
    texts: Sequence[list[int]],
    numbers: Sequence[int],
    ids: list[int],
) -> np.ndarray:
    """Doubt of the transcripts of encodings (B,), which are texts of these numbers.

    With an aligner: the cost of the alignment over the median cost of decoys. Without: nats per channel and frame
    that the transcript saves against decoys, of which `score_corpus` knows the usual.
    """
    mels = [encoding.mel for encoding in encodings]
    decoys = [choose_decoys(texts, number) for number in numbers]
    rounds = [[row[k % len(row)] for row in decoys] for k in range(max(map(len, decoys)))]
    if voice.flowtron.aligner is not None:
        own = reading_costs(voice.flowtron, mels, [encoding.tokens for encoding in encodings], ids)
        others = torch.stack([reading_costs(voice.flowtron, mels, chosen, ids) for chosen in rounds])
        # A text of more tokens than the mel has frames cannot be aligned, and has an infinite cost.
        usual = others.masked_fill(others.isinf(), torch.nan).nanmedian(0).values
        return (own / usual).nan_to_num(1.0).clamp(max=1.0).numpy()
    utterances = [encoding.utterance for encoding in encodings]
    each = [encode_batch(voice, utterances, mels, chosen, ids) for chosen in rounds]
    saved = np.median([[float(e.nats.mean()) for e in row] for row in each], 0)
    return saved - np.array([float(e.nats.mean()) for e in encodings])


def tails(z: Tensor) -> float:
    """log mean z⁴: log 3 for z of N(0, 1), more where frames are unlike what the model expects."""
    return math.log(max(1e-12, float(z.double().pow(4).mean())))


def score_corpus(
    voice: Synthesizer,
    utterances: Sequence[Utterance],
    speaker: str | int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Score], list[str]]:
    """Score recordings with their transcripts.

    Args:
        voice: that knows the speakers, or sounds like them.
        utterances: the corpus; the larger, the better what is usual is known.
        speaker: as whom to score all of them; None takes each recording's own.
        progress: called with the number of recordings done.

    Returns:
        Scores in the order of the corpus, without the recordings that cannot be scored, and why they cannot.

    Raises:
        InputError: the speaker given is unknown, or no recording can be scored.
    """
    kept: list[tuple[Utterance, list[int], int]] = []
    problems: list[str] = []
    if speaker is not None:
        voice.speaker_id(speaker)
    for each in utterances:
        try:
            tokens = voice.tokenizer.encode(each.text).tokens
        except InputError as error:
            problems.append(f"{each.path}: {error}")
            continue
        try:
            kept.append((each, tokens, speaker_of(voice, each, speaker)))
        except InputError as error:
            problems.append(str(error))
    texts = [tokens for _, tokens, _ in kept]
    encodings: list[Encoding] = []
    doubt: list[float] = []
    done = len(problems)
    for start in range(0, len(kept), BATCH):
        rows: list[tuple[int, Tensor]] = []
        for number in range(start, min(start + BATCH, len(kept))):
            try:
                rows.append((number, recorded_mel(voice, kept[number][0])))
            except InputError as error:
                problems.append(str(error))
        if rows:
            numbers = [number for number, _ in rows]
            chosen = [kept[number][0] for number in numbers]
            ids = [kept[number][2] for number in numbers]
            batch = encode_batch(voice, chosen, [mel for _, mel in rows], [texts[number] for number in numbers], ids)
            encodings += batch
            doubt += doubts(voice, batch, texts, numbers, ids).tolist()
        done += min(BATCH, len(kept) - start)
        progress(done)
    if not encodings:
        raise InputError(
            f"no recording can be scored; the first problem is: {problems[0] if problems else 'none given'}"
        )
    return _scores(voice, encodings, np.array(doubt)), problems


def _scores(voice: Synthesizer, encodings: Sequence[Encoding], doubt: np.ndarray) -> list[Score]:
    if voice.flowtron.aligner is None:
        # Saved nats become doubt by what is usual: 0 for that much, 1 for none.
        doubt = 1 - doubt / max(1e-9, float(np.median(doubt)))
    # Whoever it was encoded as, a recording is like the others of who spoke it.
    speakers = [encoding.utterance.speaker for encoding in encodings]
    means = np.array([float(encoding.nats.mean()) for encoding in encodings])
    shapes = np.array([tails(encoding.z) for encoding in encodings])
    damage = np.fmax(robust_scores(means, speakers), robust_scores(shapes, speakers))
    seconds_per_frame = voice.settings.hop_length / voice.settings.sample_rate
    width = max(1, round(WORST_SECONDS / seconds_per_frame))
    scores = []
    for encoding, mean, each_doubt, each_damage in zip(encodings, means, doubt, damage):
        nats = encoding.nats.numpy()
        smooth = np.convolve(nats, np.ones(width), "valid") if len(nats) > width else np.zeros(1)
        scores.append(
            Score(
                encoding.utterance,
                float(mean),
                float(mean) * encoding.mel.numel(),
                nats,
                float(each_doubt),
                float(each_damage),
                float(smooth.argmax()) * seconds_per_frame,
            )
        )
    return scores


def ranked(scores: Sequence[Score]) -> list[Score]:
    """Worst first: wrong transcripts by doubt, then damaged recordings, then all others by their damage."""

    def badness(score: Score) -> tuple[int, float]:
        if score.is_wrong_transcript:
            return 2, score.transcript_doubt
        return int(score.is_damaged), score.damage if math.isfinite(score.damage) else score.nats_per_dim

    return sorted(scores, key=badness, reverse=True)


COLUMNS = ("rank", "verdict", "nats_per_dim", "nats", "transcript_doubt", "damage", "worst_seconds", "speaker", "path")


def rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Scores as plain values by the names of COLUMNS and 'text', worst first."""
    return [
        {
            "rank": rank,
            "verdict": score.verdict,
            "nats_per_dim": round(score.nats_per_dim, 4),
            "nats": round(score.nats, 1),
            "transcript_doubt": round(score.transcript_doubt, 3),
            "damage": round(score.damage, 2),
            "worst_seconds": round(score.worst_seconds, 2),
            "speaker": score.utterance.speaker,
            "path": str(score.utterance.path),
            "text": score.utterance.text,
        }
        for rank, score in enumerate(ranked(scores), 1)
    ]


def table(scores: Sequence[Score], problems: Sequence[str] = (), n_rows: int = 20) -> str:
    """Readable table of the worst recordings, with a summary."""
    wrong = sum(score.is_wrong_transcript for score in scores)
    damaged = sum(score.is_damaged for score in scores)
    mean = np.mean([score.nats_per_dim for score in scores])
    widths = (5, 17, 9, 10, 7, 8, 8, 12)
    titles = ("rank", "verdict", "nats/dim", "nats", "doubt", "damage", "worst s", "speaker")
    lines = ["".join(f"{title:{width}s}" for title, width in zip(titles, widths)) + "path"]
    for row in rows(scores)[:n_rows]:
        values = [row[name] for name in COLUMNS]
        lines.append("".join(f"{value!s:{width}s}" for value, width in zip(values, widths)) + str(values[-1]))
    told = f"{damaged} damaged"
    if not any(math.isfinite(score.damage) for score in scores):
        told = f"damage is not told of fewer than {FEWEST_FOR_SCALE}"
    lines.append(f"{len(scores)} recordings, {mean:.3f} nats per dimension: {wrong} with a wrong transcript, {told}")
    if 2 * wrong > len(scores):
        lines.append("most transcripts look wrong to this model: it may not know the language or be untrained")
    return "\n".join([*lines, *(f"not scored: {problem}" for problem in problems)])


def write_csv(scores: Sequence[Score], path: Path) -> None:
    """Write all rows, worst first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, "text"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(scores))
    write_atomically(path, text.getvalue())
