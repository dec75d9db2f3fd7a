"""Experiment a: how duration and pitch vary with sigma, and with Tacotron 2's pre-net dropout.

    python scripts/experiments/variation.py -m MODEL -o results/variation [--tacotron2 CHECKPOINT]

One sentence is spoken by a fixed speaker with sigma² of 0, 0.5 and 1, many seeds each; durations are drawn with the
same sigma. Spreads are standard deviations over seeds: of the utterance's length, of its mean pitch, and of the pitch
contour (at 50 points of relative time, then the mean over points), each with a 95 % bootstrap interval.
"""

import math
from itertools import pairwise

import numpy as np
from common import SENTENCES, load, parser, shown, write_results
from matplotlib.figure import Figure

from flowtron.errors import exit_code_of
from flowtron.evaluate import pitch
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer

VARIANCES = (0.0, 0.5, 1.0)
DROPOUTS = (0.45, 0.5, 0.55)
POINTS = 50
RESAMPLES = 1000


def contour(f0: np.ndarray) -> np.ndarray:
    """Pitch (POINTS,) in Hz over relative time of f0 (T,), 0 where unvoiced, interpolated over what is unvoiced."""
    voiced = np.flatnonzero(f0)
    if not len(voiced):
        return np.full(POINTS, np.nan)
    return np.interp(np.linspace(0, len(f0) - 1, POINTS), voiced, f0[voiced])


def contour_spread(contours: np.ndarray) -> tuple[float, float, float]:
    """Mean over points of the standard deviation over seeds (n, POINTS), with its bootstrap interval over seeds."""
    known = contours[np.isfinite(contours).all(1)]
    chosen = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    # A draw of fewer different seeds spreads less; the factor makes up for it on average.
    factor = math.sqrt(len(known) / (len(known) - 1))
    draws = [known[rows].std(0, ddof=1).mean() * factor for rows in chosen]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(known.std(0, ddof=1).mean()), float(low), float(high)


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Standard deviation over seeds (n,), with its bootstrap interval."""
    return contour_spread(values[:, None])


def measure(speeches: list[Speech], voice: Synthesizer) -> dict[str, np.ndarray]:
    """Length, mean pitch and contour of utterances."""
    pitches = [pitch(speech.wav, speech.sample_rate, voice.settings.hop_length) for speech in speeches]
    return {
        "seconds": np.array([speech.seconds for speech in speeches]),
        "pitch": np.array([f0[f0 > 0].mean() if (f0 > 0).any() else np.nan for f0 in pitches]),
        "contours": np.stack([contour(f0) for f0 in pitches]),
    }


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--speaker", default=None, help="the first one if absent")
    arguments.add_argument("--text", default=SENTENCES[0])
    arguments.add_argument("--tacotron2", default=None, help="checkpoint of a Tacotron 2 trained on the same corpus")
    options = arguments.parse_args()
    voice = load(options)
    settings = [("Flowtron", f"sigma² {v:g}", voice, {"sigma": math.sqrt(v)}) for v in VARIANCES]
    if options.tacotron2:
        baseline = Synthesizer.load(options.tacotron2, **({"vocoder": options.vocoder} if options.vocoder else {}))
        settings += [("Tacotron 2", f"dropout {p:g}", baseline, {"prenet_dropout": p}) for p in DROPOUTS]
    rows, each, spreads = [], [], {}
    figure = Figure(figsize=(4 * len(settings), 4), layout="constrained")
    for axes, (model, setting, speaker_voice, sampling) in zip(figure.subplots(1, len(settings)), settings):
        speeches = [
            speaker_voice.render(options.text, options.speaker, seed=seed, **sampling) for seed in range(options.seeds)
        ]
        measured = measure(speeches, voice)
        for seed, speech in enumerate(speeches):
            if seed < 5:
                name = f"{model} {setting}".lower().replace(" ", "_").replace("²", "2")
                speech.save(options.output / "wavs" / f"{name}_seed{seed}.wav")
            each.append(
                {
                    "model": model,
                    "setting": setting,
                    "seed": seed,
                    "seconds": round(speech.seconds, 4),
                    "mean_f0_hz": round(float(measured["pitch"][seed]), 3),
                }
            )
            axes.plot(measured["contours"][seed], linewidth=0.7)
        axes.set(title=f"{model}, {setting}", xlabel="relative time", ylabel="F0 in Hz")
        spreads[model, setting] = {
            "seconds": spread(measured["seconds"]),
            "pitch": spread(measured["pitch"]),
            "contour": contour_spread(measured["contours"]),
        }
        found = spreads[model, setting]
        rows.append(
            {
                "model": model,
                "setting": setting,
                "seconds": f"{measured['seconds'].mean():.2f}",
                "spread of seconds": shown(found["seconds"], 3),
                "mean F0, Hz": f"{np.nanmean(measured['pitch']):.1f}",
                "spread of mean F0, Hz": shown(found["pitch"]),
                "spread of the F0 contour, Hz": shown(found["contour"]),
            }
        )
        print(rows[-1], flush=True)
    figure.savefig(options.output / "contours.png", dpi=100)
    checks: dict[str, object] = {}
    for name in ("seconds", "contour"):
        path = [spreads["Flowtron", f"sigma² {v:g}"][name] for v in VARIANCES]
        checks[f"spread ({name}) grows with sigma², intervals apart"] = all(a[2] < b[1] for a, b in pairwise(path))
        if options.tacotron2:
            most = max(spreads["Tacotron 2", f"dropout {p:g}"][name][2] for p in DROPOUTS)
            checks[f"spread ({name}) at sigma² 1 exceeds Tacotron 2's"] = path[-1][1] > most
    if not options.tacotron2:
        checks["Tacotron 2"] = "not measured: no checkpoint was given"
    write_results(options, rows, each, checks)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
