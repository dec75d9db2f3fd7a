"""Experiment d: what the components of a Gaussian-mixture prior stand for.

    python scripts/experiments/mixtures.py -m MODEL --corpus corpus/test.txt -o results/mixtures

MODEL's prior is a mixture (configs/mixture.json). Assignments: the mean probability of each component over the
recordings of each speaker, and how often the most probable component tells a recording's speaker, by the speaker that
it is most probable for on the other half of the recordings; the same of the mixture's mean, by which speaker's mean
mixture is nearest. Sampling: sentences are spoken from each component; their mean F0 and level. Translation: one of
them with the mean of one dimension moved by some of its standard deviations; how F0, length and level differ from the
same draw left where it is.
"""

from collections.abc import Callable

import numpy as np
import torch
from common import SENTENCES, level_db, load, mean_interval, parser, shown, write_results
from matplotlib.figure import Figure

from flowtron.data import read_filelist
from flowtron.errors import InputError, exit_code_of
from flowtron.evaluate import pitch
from flowtron.model.prior import Mixture
from flowtron.speech import Speech
from flowtron.style import Encoding, component_shares, encode, prior_source, translate
from flowtron.synthesizer import DEFAULT_SIGMA

DIMENSIONS = (0, 10, 20, 40)
DEVIATIONS = (-4.0, 4.0)
Guess = Callable[[np.ndarray, dict[str, np.ndarray]], str]


def told(encodings: list[Encoding], features: list[np.ndarray], guess: Guess) -> float:
    """Share of the second half of recordings whose speaker is guessed right, knowing the first half.

    Args:
        encodings: of the recordings.
        features: what is looked at of each.
        guess: takes one recording's features and the known ones, (n, ...) by speaker; returns a speaker.
    """
    half = len(encodings) // 2
    speakers = [encoding.utterance.speaker for encoding in encodings]
    known = {
        name: np.stack([row for row, speaker in zip(features[:half], speakers) if speaker == name])
        for name in dict.fromkeys(speakers[:half])
    }
    return float(np.mean([guess(row, known) == speaker for row, speaker in zip(features[half:], speakers[half:])]))


def mixtures_of(encodings: list[Encoding]) -> list[Mixture]:
    """The mixture of every recording."""
    mixtures = [encoding.mixture for encoding in encodings if encoding.mixture is not None]
    assert len(mixtures) == len(encodings)
    return mixtures


def told_by_components(encodings: list[Encoding]) -> float:
    """Share whose speaker the most probable component tells: the one for whom it is the most probable."""

    def guess(prob: np.ndarray, known: dict[str, np.ndarray]) -> str:
        return max(known, key=lambda name: float(known[name][:, prob.argmax()].sum()))

    return told(encodings, [mixture.prob[0].numpy() for mixture in mixtures_of(encodings)], guess)


def told_by_means(encodings: list[Encoding]) -> float:
    """Share whose speaker the mixture's mean tells: the one whose mean mixture is the nearest."""

    def guess(mean: np.ndarray, known: dict[str, np.ndarray]) -> str:
        return min(known, key=lambda name: float(np.linalg.norm(mean - known[name].mean(0))))

    means = [(mixture.mean[0] * mixture.prob[0]).sum(1).numpy() for mixture in mixtures_of(encodings)]
    return told(encodings, means, guess)


def measure(speech: Speech, hop_length: int) -> tuple[float, float, float]:
    """Mean F0 in Hz, seconds, and level in dB."""
    f0 = pitch(speech.wav, speech.sample_rate, hop_length)
    return float(f0[f0 > 0].mean()) if (f0 > 0).any() else float("nan"), speech.seconds, level_db(speech.wav)


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", required=True, help="filelist path|text|speaker of recordings")
    arguments.add_argument("--limit", type=int, default=40, help="recordings of each speaker (default: %(default)s)")
    arguments.add_argument("--speaker", default=None, help="who speaks; the first if absent")
    options = arguments.parse_args()
    voice = load(options)
    if voice.flowtron.mixture is None:
        raise InputError(f"{options.model}: its prior is no mixture; train configs/mixture.json.")
    utterances = read_filelist(options.corpus)
    names = sorted({u.speaker for u in utterances})
    rows_of = [[u for u in utterances if u.speaker == name][: options.limit] for name in names]
    # In turn, so that both halves have all speakers.
    chosen = [row[k] for k in range(options.limit) for row in rows_of if k < len(row)]
    encodings = encode(voice, chosen)
    shares = component_shares(encodings)
    rows = [
        {"speaker": name, **{f"component {k}": f"{p:.3f}" for k, p in enumerate(shares[name].tolist())}}
        for name in names
    ]
    with torch.inference_mode():
        prior = voice.flowtron.mixture.unconditional()
    n_components = prior.prob.shape[1]
    hop, each, spoken, moved = voice.settings.hop_length, [], [], []
    for component in range(n_components):
        starts = []
        for seed in range(options.seeds):

            def say(mixture, text=SENTENCES[0], component=component, seed=seed) -> Speech:
                z = prior_source(voice, seed, DEFAULT_SIGMA, mixture, component)
                return voice.render(text, options.speaker, z=z, seed=seed, duration_sigma=0.0)

            still = say(prior)
            if seed == 0:
                still.save(options.output / "wavs" / f"component{component}.wav")
            start = measure(still, hop)
            starts += [start, *(measure(say(prior, text), hop) for text in SENTENCES[1:])]
            for dimension in DIMENSIONS:
                for deviations in DEVIATIONS:
                    speech = say(translate(prior, component, dimension, deviations))
                    if seed == 0:
                        name = f"component{component}_dimension{dimension}_{deviations:+g}.wav"
                        speech.save(options.output / "wavs" / name)
                    change = [b - a for a, b in zip(start, measure(speech, hop))]
                    each.append(
                        {
                            "component": component,
                            "dimension": dimension,
                            "deviations": deviations,
                            "seed": seed,
                            "f0_hz": round(change[0], 3),
                            "seconds": round(change[1], 4),
                            "level_db": round(change[2], 3),
                        }
                    )
        spoken.append(
            {
                "spoken from": f"component {component}",
                "mean F0, Hz": shown(mean_interval([f0 for f0, _, _ in starts])),
                "level, dB": shown(mean_interval([level for _, _, level in starts])),
            }
        )
    for dimension in DIMENSIONS:
        for deviations in DEVIATIONS:
            some = [row for row in each if row["dimension"] == dimension and row["deviations"] == deviations]
            moved.append(
                {
                    "spoken from": "any, moved",
                    "dimension": dimension,
                    "deviations": f"{deviations:+g}",
                    "mean F0, Hz": shown(mean_interval([row["f0_hz"] for row in some])),
                    "level, dB": shown(mean_interval([row["level_db"] for row in some])),
                }
            )
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        at = np.arange(n_components) + 0.8 * number / len(names)
        axes.bar(at, shares[name].tolist(), width=0.8 / len(names), label=name)
    axes.set(xlabel="component", ylabel="mean probability")
    axes.legend()
    figure.savefig(options.output / "assignments.png", dpi=100)
    chance = max(sum(e.utterance.speaker == name for e in encodings) for name in names) / len(encodings)
    write_results(
        options,
        [*rows, *spoken, *moved],
        each,
        {
            "share of recordings whose speaker their component tells": round(told_by_components(encodings), 3),
            "share whose speaker the mean of their mixture tells": round(told_by_means(encodings), 3),
            "by chance": round(chance, 3),
        },
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
