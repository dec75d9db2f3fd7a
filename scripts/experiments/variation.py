"""Experiment a: how duration and pitch vary with sigma, and with Tacotron 2's pre-net dropout.

    python scripts/experiments/variation.py -m MODEL -o results/variation [--tacotron2 CHECKPOINT]

Sentences are spoken by a fixed speaker with sigma² of 0, 0.5 and 1 (`--variances`), many seeds each. Spreads are
standard deviations over seeds, pooled over sentences (root of the mean variance), with 95 % bootstrap intervals over
seeds:

- of an utterance's length, with durations drawn at the share of sigma that the voice uses, and at the whole of sigma
  (`duration_sigma`);
- of an utterance's mean F0, and of its F0 contour frame by frame, with the durations held fixed, so that z alone is
  looked at and frames of different seeds speak the same sound;
- of the F0 contour in semitones and robustly, as the distance of its quartiles over that of N(0, 1): a few frames that
  are several semitones off, where a sound becomes voiced, count for much of a variance and for nothing of this. Beside
  it stands how much the mean contour of all seeds moves, which is what the text and not z says of pitch.

F0 is by probabilistic YIN, in Hz, where voiced; frames more than 9 semitones from their utterance's median are octave
errors and left out. Loud z makes noise that is called voiced, so that only those frames count that are voiced in the
model's own most likely speech (sigma 0), where the durations can be held fixed, and else those that at least half of
the seeds voice. The robust spread takes, where durations are fixed, the frames that at least 80 % of the seeds voice at
every sigma, so that all rows are of the same frames.

Whether a spread grows from one sigma² to the next is told in two ways: by intervals that are apart, and by the interval
of their ratio over the same draws of seeds, which is narrower (see `growth`).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SENTENCES, load, parser, shown, write_results
from matplotlib.figure import Figure

from flowtron.errors import exit_code_of
from flowtron.evaluate import pitch
from flowtron.inference import SamplingOptions, Utterance, predict_durations
from flowtron.model import Flowtron
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer

VARIANCES = [0.0, 0.5, 1.0]
DROPOUTS = (0.45, 0.5, 0.55)
TEXTS = (SENTENCES[0], SENTENCES[2])
OCTAVE_ERROR_SEMITONES = 9.0
SURELY_VOICED = 0.8  # of the seeds
QUARTILES_OF_NORMAL = 1.349
RESAMPLES = 1000
SAME = 1e-6  # a spread of what is the same but for rounding


class Estimate(NamedTuple):
    """A statistic of all seeds, its 95 % interval, and its values (RESAMPLES,) for draws of seeds."""

    value: float
    low: float
    high: float
    draws: np.ndarray


class Setting(NamedTuple):
    """A row of the table: the model's name, what is set, the voice, and its options of sampling."""

    model: str
    setting: str
    voice: Synthesizer
    sampling: dict[str, Any]


def clean(f0: np.ndarray) -> np.ndarray:
    """F0 (T,) in Hz with NaN where unvoiced, or an octave or so away from the median."""
    values = np.where(f0 > 0, f0, np.nan)
    if np.isnan(values).all():
        return values
    distance = np.abs(12 * np.log2(values / np.nanmedian(values)))
    return np.where(distance > OCTAVE_ERROR_SEMITONES, np.nan, values)


def bootstrap(n_seeds: int, statistic: Callable[[np.ndarray], float], of_variance: bool = True) -> Estimate:
    """A statistic of the seeds' numbers (n,), over draws of seeds, which are the same for the same number of them."""
    generator = np.random.default_rng(0)
    # A draw has fewer different seeds and their variance is less; the factor makes up for it on average.
    factor = math.sqrt(n_seeds / (n_seeds - 1)) if of_variance else 1.0
    draws = [factor * statistic(generator.integers(0, n_seeds, n_seeds)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(statistic(np.arange(n_seeds)), float(low), float(high), np.array(draws))


def growth(before: Estimate, after: Estimate) -> tuple[float, float, float]:
    """By what an estimate is larger than another of the same seeds, with the 95 % interval over the same draws.

    A seed gives every sigma the same noise, so that much of what a draw of seeds does to one spread it does to the
    other, and their ratio is known better than either.
    """
    low, high = np.nanpercentile(after.draws / before.draws, [2.5, 97.5])
    return after.value / before.value, float(low), float(high)


def pooled_spread(values: np.ndarray) -> Estimate:
    """Root of the mean over sentences of the variance over seeds, of values (sentences, seeds)."""

    def statistic(seeds: np.ndarray) -> float:
        return float(np.sqrt(np.nanmean(np.nanvar(values[:, seeds], 1, ddof=1))))

    return bootstrap(values.shape[1], statistic)


def contour_spread(contours: Sequence[np.ndarray]) -> Estimate:
    """The same of contours (seeds, T) of each sentence, over frames that at least half of the seeds voice."""

    def statistic(seeds: np.ndarray) -> float:
        spreads = []
        for contour in contours:
            voiced = np.isfinite(contour).mean(0) >= 0.5
            chosen = contour[seeds][:, voiced]
            several = np.isfinite(chosen).sum(0) > 1
            if several.any():
                spreads.append(np.nanvar(chosen[:, several], 0, ddof=1).mean())
        return float(np.sqrt(np.mean(spreads))) if spreads else float("nan")

    return bootstrap(len(contours[0]), statistic)


def semitones(f0: np.ndarray) -> np.ndarray:
    """F0 in semitones above 100 Hz."""
    return 12 * np.log2(f0 / 100)


def surely_voiced(settings: Sequence[np.ndarray]) -> np.ndarray:
    """Frames (T,) that most of the seeds voice in all of some settings' contours (seeds, T) of a sentence."""
    longest = max(contour.shape[1] for contour in settings)
    shares = [np.pad(np.isfinite(contour).mean(0), (0, longest - contour.shape[1])) for contour in settings]
    return np.min(shares, 0) >= SURELY_VOICED


def robust_contour_spread(contours: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> Estimate:
    """Distance of the quartiles over seeds, in semitones over that of N(0, 1): the mean over frames and sentences.

    Args:
        contours: (seeds, T) in Hz of each sentence.
        chosen: its frames (T,) that count.
    """
    pitches = [semitones(contour[:, where[: contour.shape[1]]]) for contour, where in zip(contours, chosen)]
    pitches = [pitch for pitch in pitches if pitch.size]

    def statistic(seeds: np.ndarray) -> float:
        quartiles = [np.nanpercentile(pitch[seeds], [25, 75], axis=0) for pitch in pitches]
        return float(np.mean([np.nanmean(high - low) for low, high in quartiles]) / QUARTILES_OF_NORMAL)

    if not pitches:
        return Estimate(math.nan, math.nan, math.nan, np.full(RESAMPLES, math.nan))
    return bootstrap(len(contours[0]), statistic, of_variance=False)


def common_movement(contours: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> float:
    """Standard deviation over time, in semitones, of the mean contour of all seeds, pooled over sentences."""
    means = [np.nanmean(semitones(c[:, where[: c.shape[1]]]), 0) for c, where in zip(contours, chosen)]
    return float(np.sqrt(np.mean([np.nanvar(mean) for mean in means if mean.size])))


def lengths(voice: Synthesizer, text: str, speaker: str | None, options: SamplingOptions, seeds: int) -> list[float]:
    """Seconds of a text with every seed, by its durations alone."""
    assert isinstance(voice.model, Flowtron)
    tokens = voice.tokenizer.encode(text).tokens
    asked = [Utterance(tokens, voice.speaker_id(speaker), seed) for seed in range(seeds)]
    with torch.inference_mode():
        frames = predict_durations(voice.model, asked, options, len(tokens), torch.device("cpu")).sum(1)
    return [n * voice.settings.hop_length / voice.settings.sample_rate for n in frames.tolist()]


def likely_voiced(voice: Synthesizer, text: str, speaker: str | None) -> np.ndarray | None:
    """Which frames (T,) the most likely speech voices; None where durations cannot be held fixed."""
    if not isinstance(voice.model, Flowtron) or voice.model.duration_predictor is None:
        return None
    speech = voice.render(text, speaker, sigma=0.0, duration_sigma=0.0)
    return np.isfinite(clean(pitch(speech.wav, speech.sample_rate, voice.settings.hop_length)))


def spoken(setting: Setting, text: str, speaker: str | None, seeds: int) -> list[Speech]:
    """Utterances of a text with every seed; durations held fixed where the model has them."""
    has_durations = isinstance(setting.voice.model, Flowtron) and setting.voice.model.duration_predictor is not None
    fixed = {"duration_sigma": 0.0} if has_durations else {}
    # Without z and with durations fixed every seed says the same.
    is_one = bool(fixed) and setting.sampling["sigma"] == 0
    options = setting.sampling | fixed
    speeches = [setting.voice.render(text, speaker, seed=seed, **options) for seed in range(1 if is_one else seeds)]
    return speeches * seeds if is_one else speeches


def contours_of(speeches: Sequence[Speech], hop_length: int) -> list[np.ndarray]:
    """F0 contours (T,) in Hz of utterances, each computed once."""
    known: dict[int, np.ndarray] = {}
    for speech in speeches:
        if id(speech) not in known:
            known[id(speech)] = clean(pitch(speech.wav, speech.sample_rate, hop_length))
    return [known[id(speech)] for speech in speeches]


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--speaker", default=None, help="the first one if absent")
    arguments.add_argument(
        "--variances", nargs="+", type=float, default=VARIANCES, help="sigma² (default: %(default)s)"
    )
    arguments.add_argument(
        "--length-seeds", type=int, default=200, help="draws of durations, which cost little (default: %(default)s)"
    )
    arguments.add_argument("--tacotron2", default=None, help="checkpoint of a Tacotron 2 trained on the same corpus")
    options = arguments.parse_args()
    voice = load(options)
    settings = [Setting("Flowtron", f"sigma² {v:g}", voice, {"sigma": math.sqrt(v)}) for v in options.variances]
    if options.tacotron2:
        baseline = Synthesizer.load(options.tacotron2, **({"vocoder": options.vocoder} if options.vocoder else {}))
        settings += [Setting("Tacotron 2", f"dropout {p:g}", baseline, {"prenet_dropout": p}) for p in DROPOUTS]
    rows: list[dict[str, Any]] = []
    each: list[dict[str, Any]] = []
    spreads: dict[tuple[str, str], dict[str, Estimate]] = {}
    measured_contours: dict[tuple[str, str], list[np.ndarray]] = {}
    figure = Figure(figsize=(4 * len(settings), 4), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(settings)), settings):
        contours, seconds, whole = [], [], []
        for number, text in enumerate(TEXTS):
            speeches = spoken(setting, text, options.speaker, options.seeds)
            pitches = contours_of(speeches, setting.voice.settings.hop_length)
            longest = max(map(len, pitches))
            contour = np.stack([np.pad(f0, (0, longest - len(f0)), constant_values=np.nan) for f0 in pitches])
            voiced = likely_voiced(setting.voice, text, options.speaker)
            contours.append(contour if voiced is None else np.where(voiced, contour, np.nan))
            if isinstance(setting.voice.model, Flowtron) and setting.voice.model.duration_predictor is not None:
                sampling = SamplingOptions(**setting.sampling)
                draws = max(options.seeds, options.length_seeds)
                seconds.append(lengths(setting.voice, text, options.speaker, sampling, draws))
                at_whole = SamplingOptions(**setting.sampling, duration_sigma=sampling.sigma)
                whole.append(lengths(setting.voice, text, options.speaker, at_whole, draws))
            else:
                seconds.append([speech.seconds for speech in speeches])
            for seed, speech in enumerate(speeches):
                if seed < 5:
                    name = f"{setting.model} {setting.setting} {number}".lower().replace(" ", "_").replace("²", "2")
                    speech.save(options.output / "wavs" / f"{name}_seed{seed}.wav")
        with np.errstate(all="ignore"):
            means = np.array(
                [[float(np.nanmean(f0)) if np.isfinite(f0).any() else np.nan for f0 in c] for c in contours]
            )
        for number, text in enumerate(TEXTS):
            for seed in range(options.seeds):
                measured = {"seconds": round(seconds[number][seed], 4), "mean_f0_hz": round(means[number][seed], 3)}
                each.append({"model": setting.model, "setting": setting.setting, "text": text, "seed": seed} | measured)
        axes.plot(contours[0].T, linewidth=0.7)
        axes.set(title=f"{setting.model}, {setting.setting}", xlabel="frame", ylabel="F0 in Hz")
        found = {
            "seconds": pooled_spread(np.array(seconds)),
            "whole": pooled_spread(np.array(whole or seconds)),
            "pitch": pooled_spread(means),
            "contour": contour_spread(contours),
        }
        spreads[setting.model, setting.setting] = found
        measured_contours[setting.model, setting.setting] = contours
        voiced = float(np.mean([np.isfinite(c).mean() for c in contours]))
        rows.append(
            {
                "model": setting.model,
                "setting": setting.setting,
                "seconds": f"{np.mean(seconds):.2f}",
                "spread of seconds": shown(found["seconds"][:3], 3),
                "with durations at the whole of sigma": shown(found["whole"][:3], 3) if whole else "",
                "mean F0, Hz": f"{np.nanmean(means):.1f}",
                "spread of mean F0, Hz": shown(found["pitch"][:3]),
                "spread of the F0 contour, Hz": shown(found["contour"][:3]),
                "voiced": f"{voiced:.2f}",
            }
        )
        print(rows[-1], flush=True)
    figure.savefig(options.output / "contours.png", dpi=100)
    for row in rows:
        key = row["model"], row["setting"]
        contours = measured_contours[key]
        is_fixed = row["model"] == "Flowtron" and voice.flowtron.duration_predictor is not None
        same = [c for (name, _), c in measured_contours.items() if name == "Flowtron"] if is_fixed else [contours]
        chosen = [surely_voiced([each_setting[number] for each_setting in same]) for number in range(len(TEXTS))]
        spreads[key]["robust"] = robust_contour_spread(contours, chosen)
        row["robust spread of the F0 contour, semitones"] = shown(spreads[key]["robust"][:3])
        row["movement of the mean contour, semitones"] = f"{common_movement(contours, chosen):.2f}"
    checks: dict[str, object] = {}
    names = {
        "seconds": "length",
        "whole": "length, durations at the whole",
        "pitch": "mean F0",
        "contour": "F0 contour",
        "robust": "F0 contour, robust",
    }
    for key, name in names.items():
        path = [spreads["Flowtron", f"sigma² {v:g}"][key] for v in options.variances]
        checks[f"spread of {name} grows with sigma², intervals apart"] = all(a.high < b.low for a, b in pairwise(path))
        ratios = [growth(a, b) for a, b in pairwise(path) if a.value > SAME]
        checks[f"growth of the spread of {name}, same seeds"] = ", ".join(shown(ratio, 3) for ratio in ratios)
        if options.tacotron2:
            most = max(spreads["Tacotron 2", f"dropout {p:g}"][key].high for p in DROPOUTS)
            checks[f"spread of {name} at sigma² 1 exceeds Tacotron 2's"] = path[-1].low > most
    if not options.tacotron2:
        checks["Tacotron 2"] = "not measured: no checkpoint was given"
    write_results(options, rows, each, checks)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
