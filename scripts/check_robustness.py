"""Does a voice ever lose its place? Held-out sentences and long paragraphs, judged by their attention and by ear.

    python scripts/check_robustness.py MODEL --sentences corpus/test.txt --listen --json > robustness.json

Modes: `guided` is the default; `window` is what a model without durations gets, here by leaving them out; `unguided` is
the original's behaviour. A word is skipped when no frame of some step of flow dwells on it, repeated when the
attention comes back to it after a later word, cut when the attention stops before the last word. With --listen, a
recogniser counts word errors of speech and of the recordings' copy synthesis. Paragraphs are sentences of the list in
a row.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowtron.audio import load_wav, log_mel
from flowtron.data import Utterance as Recording
from flowtron.data import read_filelist
from flowtron.evaluate import Heard, listen, rate
from flowtron.inference import DTYPES, PATH_SHARE, SamplingOptions, Utterance, badness, pack_weights, synthesize_mels
from flowtron.passages import passages
from flowtron.synthesizer import Synthesizer
from flowtron.text import Word

MODES = ("guided", "window", "unguided")
PARAGRAPH_SENTENCES = 8
SMOOTHING_FRAMES = 5
SILENCE = np.zeros(5000, dtype=np.float32)
ATTEMPTS = 2


@dataclass
class Count:
    """Faults over texts: utterances that fail the alignment check at the end, words by fault, and tries again."""

    utterances: int = 0
    failed: int = 0
    tried_again: int = 0
    words: int = 0
    skipped: int = 0
    repeated: int = 0
    cut: int = 0
    examples: list[str] = field(default_factory=list)


def place(attention: Tensor, words: list[Word]) -> list[int]:
    """Word that each frame of attention (T_mel, N) dwells on, smoothed, in order; frames between words are left out."""
    owner = torch.full((attention.shape[1],), -1)
    for index, word in enumerate(words):
        owner[word.start : word.end] = index
    half = SMOOTHING_FRAMES // 2
    peaks = attention.argmax(1)[None, None].float()
    smooth = torch.nn.functional.pad(peaks, (half, half), mode="replicate")[0, 0].unfold(0, SMOOTHING_FRAMES, 1)
    where = owner[smooth.median(1).values.long()].tolist()
    return [word for i, word in enumerate(where) if word >= 0 and (i == 0 or where[i - 1] != word)]


def judge(attention: Tensor, words: list[Word]) -> tuple[set[int], set[int], set[int]]:
    """Indices of the words that an utterance's attention (n_flows, T_mel, N) skips, repeats and cuts."""
    skipped: set[int] = set()
    repeated: set[int] = set()
    cut: set[int] = set()
    for matrix in attention:
        visited = place(matrix, words)
        last = max(visited, default=-1)
        # A short word may pass without holding the median; it counts as visited if some frame attends to it.
        touched = {i for i, word in enumerate(words) if matrix[:, word.start : word.end].max() > 0.2}
        missing = set(range(len(words))) - set(visited) - touched
        cut |= {i for i in missing if i > last}
        skipped |= {i for i in missing if i < last}
        highest = -1
        for word in visited:
            if word < highest - 1:
                repeated.add(word)
            highest = max(highest, word)
    return skipped, repeated, cut


def speak(voice: Synthesizer, text: str, speaker: str, mode: str, seed: int, count: Count) -> list[Tensor]:
    """Mels of a text's passages, their faults counted."""
    predictor = voice.model.duration_predictor
    voice.model.duration_predictor = None if mode == "window" else predictor
    mels = []
    try:
        for passage in passages(text):
            tokenized = voice.tokenizer.encode(passage.text)
            options = SamplingOptions(guided=mode != "unguided", path_width=PATH_SHARE * voice.path_width)
            best = None
            for attempt in range(ATTEMPTS if mode != "unguided" else 1):
                utterance = Utterance(tokenized.tokens, voice.speaker_id(speaker), seed + attempt)
                result = synthesize_mels(voice.model, [utterance], options, weights=voice.weights)[0]
                if best is None or badness(result.alignment) < badness(best.alignment):
                    best = result
                count.tried_again += attempt
                if result.alignment.is_complete:
                    break
            assert best is not None
            faults = judge(best.attention, tokenized.words)
            count.utterances += 1
            count.failed += not best.alignment.is_complete
            count.words += len(tokenized.words)
            for name, words in zip(("skipped", "repeated", "cut"), faults):
                setattr(count, name, getattr(count, name) + len(words))
                if words:
                    named = " ".join(tokenized.words[i].text for i in sorted(words))
                    count.examples.append(f"{name} {named!r} in {passage.text!r}")
            mels.append(best.mel)
    finally:
        voice.model.duration_predictor = predictor
    return mels


def sound(voice: Synthesizer, mels: list[Tensor]) -> np.ndarray:
    """Sound of passages with pauses between them."""
    with torch.inference_mode():
        wavs = [voice.vocoder(mel[None].float())[0].cpu().numpy() for mel in mels]
    return np.concatenate([piece for wav in wavs for piece in (wav, SILENCE)])


def paragraphs(recordings: list[Recording], n_paragraphs: int) -> list[list[Recording]]:
    """Group recordings of one speaker at a time, spread over the list."""
    groups = []
    for speaker in sorted({each.speaker for each in recordings}):
        own = [each for each in recordings if each.speaker == speaker]
        groups += [own[i : i + PARAGRAPH_SENTENCES] for i in range(0, len(own), PARAGRAPH_SENTENCES)]
    whole = [group for group in groups if len(group) == PARAGRAPH_SENTENCES]
    return [whole[i * len(whole) // n_paragraphs] for i in range(min(n_paragraphs, len(whole)))]


def word_error_rate(heard: list[Heard]) -> dict[str, float]:
    """Word error rate in percent with its interval."""
    return rate([(each.word_errors, each.words) for each in heard])


def run(options: argparse.Namespace) -> dict[str, object]:
    """Measure; return what was counted."""
    voice = Synthesizer.load(options.model, options.vocoder)
    recordings = read_filelist(options.sentences)
    report: dict[str, object] = {}
    texts = [[each] for each in recordings[: options.n_sentences]]
    sets = {"sentences": texts, "paragraphs": paragraphs(recordings, options.n_paragraphs)}
    spoken: dict[int, list[Tensor]] = {}
    for mode in options.modes:
        for name, groups in sets.items():
            count, heard = Count(), []
            for number, group in enumerate(groups):
                text = " ".join(each.text for each in group)
                mels = speak(voice, text, group[0].speaker, mode, number, count)
                if mode == "guided" and name == "sentences":
                    spoken[number] = mels
                if options.listen:
                    heard.append(listen(text, sound(voice, mels), voice.settings.sample_rate))
            values = {**vars(count), "examples": count.examples[:20]}
            if heard:
                values["wer"] = word_error_rate(heard)
            report[f"{name}, {mode}"] = values
            print(f"{name}, {mode}: {values}", file=sys.stderr, flush=True)
    if options.listen:
        for name, groups in sets.items():
            copies = []
            for group in groups:
                mels = [log_mel(load_wav(each.path, voice.settings.sample_rate), voice.settings) for each in group]
                text = " ".join(each.text for each in group)
                copies.append(listen(text, sound(voice, mels), voice.settings.sample_rate))
            report[f"{name}, copy synthesis"] = {"wer": word_error_rate(copies)}
            print(f"{name}, copy synthesis: {report[f'{name}, copy synthesis']}", file=sys.stderr, flush=True)
    for dtype in options.dtypes:
        voice.weights = pack_weights(voice.model, "kernel", dtype)
        distances, heard = [], []
        for number, group in enumerate(sets["sentences"]):
            mels = speak(voice, group[0].text, group[0].speaker, "guided", number, Count())
            distances += [float((a - b).abs().mean()) for a, b in zip(mels, spoken[number]) if a.shape == b.shape]
            if options.listen:
                heard.append(listen(group[0].text, sound(voice, mels), voice.settings.sample_rate))
        values = {"mel_distance": float(np.mean(distances)), "compared": len(distances)}
        if heard:
            values["wer"] = word_error_rate(heard)
        report[f"sentences, {dtype}"] = values
        print(f"sentences, {dtype}: {values}", file=sys.stderr, flush=True)
    return report


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder or bundled voice")
    parser.add_argument("--sentences", type=Path, required=True, help="filelist of held-out recordings")
    parser.add_argument("--vocoder", default="griffin_lim")
    parser.add_argument("--n-sentences", type=int, default=200)
    parser.add_argument("--n-paragraphs", type=int, default=20)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=["guided"])
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=["bfloat16", "int8"])
    parser.add_argument("--listen", action="store_true", help="count word errors with a recogniser, which takes longer")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    if options.dtypes and "guided" not in options.modes:
        parser.error("--dtypes are compared with guided speech: add it to --modes.")
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    report = run(options)
    if options.json:
        print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
