"""Experiment b: from one sample to another, and from one speaker to another.

    python scripts/experiments/interpolation.py -m MODEL -o results/interpolation --speakers heart joe

Samples: the z of two seeds, one speaker and the same durations; weights of the second 0 to 1, linear and spherical.
Speakers: their embeddings, the same z. At every weight: mean F0, the word error rate of a recogniser over all
sentences, the size of z, and how like the voice is to the two ends (cosine of resemblyzer's vectors with their mean
over the ends' own utterances).
"""

import argparse
from typing import Any

import numpy as np
from common import SENTENCES, load, mean_interval, parser, shown, write_results
from matplotlib.figure import Figure

from flowtron.errors import exit_code_of
from flowtron.evaluate import listen, pitch, rate, speaker_embedding
from flowtron.speech import Speech
from flowtron.style import blend_speakers, interpolation_source, prior_source
from flowtron.synthesizer import Synthesizer

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIGMA = 0.8
SPEAKER_SIGMA = 0.5


def heard(speeches: list[Speech]) -> tuple[float, float, float]:
    """Word error rate in percent, with its 95 % bootstrap interval over utterances."""
    each = [listen(speech.text, speech.wav, speech.sample_rate) for speech in speeches]
    found = rate([(h.word_errors, h.words) for h in each])
    return found["value"], found["low"], found["high"]


def mean_pitch(speech: Speech, voice: Synthesizer) -> float:
    """Mean F0 in Hz of what is voiced."""
    f0 = pitch(speech.wav, speech.sample_rate, voice.settings.hop_length)
    return float(f0[f0 > 0].mean()) if (f0 > 0).any() else float("nan")


def direction(vectors: list[np.ndarray]) -> np.ndarray:
    """Unit vector of the mean."""
    mean = np.mean(vectors, 0)
    return mean / np.linalg.norm(mean)


def samples_path(options: argparse.Namespace, voice: Synthesizer) -> list[dict[str, Any]]:
    """Rows of the ways between draws of z, straight and along the sphere."""
    rows = []
    for kind in ("linear", "spherical"):
        for weight in WEIGHTS:
            speeches = []
            for seed in range(options.seeds):
                for number, text in enumerate(SENTENCES):
                    a, b = prior_source(voice, 2 * seed, SIGMA), prior_source(voice, 2 * seed + 1, SIGMA)
                    z = interpolation_source(a, b, weight, spherical=kind == "spherical")
                    speech = voice.render(text, options.speakers[0], z=z, sigma=SIGMA, duration_sigma=0.0)
                    speeches.append(speech)
                    if seed == 0:
                        speech.save(options.output / "wavs" / f"samples_{kind}_{weight:g}_{number}.wav")
            pitches = [mean_pitch(speech, voice) for speech in speeches]
            size = float(np.mean([float(speech.z.std()) for speech in speeches]))
            rows.append(
                {
                    "path": f"samples, {kind}",
                    "weight": weight,
                    "mean F0, Hz": shown(mean_interval(pitches), 1),
                    "size of z": f"{size:.3f}",
                    "word errors, %": shown(heard(speeches), 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def speakers_path(
    options: argparse.Namespace, voice: Synthesizer
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows of the way between two speakers, its measurements, and what they show; draws it too."""
    first, second = options.speakers
    rows, each = [], []
    by_weight: dict[float, list[Speech]] = {}
    for weight in WEIGHTS:
        blended, name = blend_speakers(voice, first, second, weight)
        by_weight[weight] = [
            blended.render(text, name, sigma=SPEAKER_SIGMA, duration_sigma=0.0, seed=seed)
            for seed in range(options.seeds)
            for text in SENTENCES
        ]
        for number, speech in enumerate(by_weight[weight][: len(SENTENCES)]):
            speech.save(options.output / "wavs" / f"speakers_{weight:g}_{number}.wav")
    vectors = {w: [speaker_embedding(s.wav, s.sample_rate) for s in speeches] for w, speeches in by_weight.items()}
    ends = direction(vectors[0.0]), direction(vectors[1.0])
    likeness: dict[float, list[np.ndarray]] = {}
    errors: dict[float, tuple[float, float, float]] = {}
    for weight, speeches in by_weight.items():
        likeness[weight] = [np.array([vector @ end for vector in vectors[weight]]) for end in ends]
        errors[weight] = heard(speeches)
        pitches = [mean_pitch(speech, voice) for speech in speeches]
        rows.append(
            {
                "path": "speakers",
                "weight": weight,
                "mean F0, Hz": shown(mean_interval(pitches), 1),
                "size of z": f"{SPEAKER_SIGMA:.3f}",
                "word errors, %": shown(errors[weight], 1),
                f"like {first}": shown(mean_interval(likeness[weight][0]), 3),
                f"like {second}": shown(mean_interval(likeness[weight][1]), 3),
            }
        )
        print(rows[-1], flush=True)
        for number, speech in enumerate(speeches):
            each.append(
                {
                    "weight": weight,
                    "number": number,
                    "text": speech.text,
                    "mean_f0_hz": round(pitches[number], 2),
                    f"like_{first}": round(float(likeness[weight][0][number]), 4),
                    f"like_{second}": round(float(likeness[weight][1][number]), 4),
                }
            )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate((first, second)):
        axes.plot(WEIGHTS, [likeness[w][number].mean() for w in WEIGHTS], marker="o", label=f"like {name}")
    axes.set(xlabel=f"weight of {second}", ylabel="cosine")
    axes.legend()
    figure.savefig(options.output / "speakers.png", dpi=100)
    course = [[float(likeness[w][number].mean()) for w in WEIGHTS] for number in (0, 1)]
    checks = {
        "likeness moves monotonically from one speaker to the other": course[0] == sorted(course[0], reverse=True)
        and course[1] == sorted(course[1]),
        "word errors along the path stay within 10 points of the ends": max(value for value, _, _ in errors.values())
        <= max(errors[0.0][0], errors[1.0][0]) + 10,
    }
    return rows, each, checks


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--speakers", nargs=2, required=True, metavar="NAME")
    arguments.add_argument(
        "--paths", nargs="+", choices=("samples", "speakers"), default=("samples", "speakers"), help="which to go"
    )
    options = arguments.parse_args()
    voice = load(options)
    rows: list[dict[str, Any]] = []
    each: list[dict[str, Any]] = []
    checks: dict[str, Any] = {}
    if "speakers" in options.paths:
        rows, each, checks = speakers_path(options, voice)
    if "samples" in options.paths:
        rows += samples_path(options, voice)
    write_results(options, rows, each, checks)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
