"""Experiment b, over time: from the voice by itself to the style of evidence within one utterance, and back.

    python scripts/experiments/over_time.py -m MODEL --corpus corpus_expressive --speaker heart -o results/over_time

As `flowtron style interpolate -e EVIDENCE --weight 0:0,1:1`: z goes from a draw of the prior to one of the posterior of
evidence with the same noise, in a straight line over the utterance (towards), or the other way (away), or is the
posterior's throughout. Durations are held fixed, so that every quarter of an utterance has the same sounds as that of
the voice by itself. A quarter's shift is the mean difference of its pitch, or its level, over seeds and sentences. What
a style does differs by place, so that the two ways are compared at the same place: in the second half the one towards
the evidence should shift more, in the first half the one away from it. Rate is not looked at, since durations keep it
out of z.
"""

from pathlib import Path
from typing import Any

import numpy as np
from common import SENTENCES, level_db, load, mean_interval, parser, shown, write_results
from matplotlib.figure import Figure
from transfer import STYLES, Style, chosen, read_factors

from flowtron.data import read_filelist
from flowtron.errors import InputError, exit_code_of
from flowtron.evaluate import pitch
from flowtron.speech import Speech
from flowtron.style import Posterior, encode, interpolation_source, prior_source
from flowtron.synthesizer import DEFAULT_SIGMA, Synthesizer

QUARTERS = 4
WAYS = {"throughout": [(0.0, 1.0)], "towards": [(0.0, 0.0), (1.0, 1.0)], "away": [(0.0, 1.0), (1.0, 0.0)]}


def quarters(style: Style, speech: Speech, other: Speech, hop_length: int) -> list[float]:
    """Shift of a style's factor from another utterance of the same durations, by quarter."""
    shifts = []
    for wavs in zip(*(np.array_split(each.wav, QUARTERS) for each in (speech, other))):
        if style.factor == "gain_db":
            shifts.append(level_db(wavs[0]) - level_db(wavs[1]))
            continue
        f0 = [pitch(wav, speech.sample_rate, hop_length) for wav in wavs]
        voiced = (f0[0] > 0) & (f0[1] > 0)
        shift = 12 * float(np.median(np.log2(f0[0][voiced] / f0[1][voiced]))) if voiced.any() else float("nan")
        shifts.append(shift)
    return shifts


def speak(voice: Synthesizer, text: str, speaker: str, seed: int, posterior: Posterior | None, way: str) -> Speech:
    """Speak from the prior, or between the prior and a posterior, in one of WAYS."""
    z = prior_source(voice, seed, DEFAULT_SIGMA)
    if posterior is not None:
        z = interpolation_source(z, posterior.source(seed, DEFAULT_SIGMA, voice), WAYS[way])
    return voice.render(text, speaker, z=z, sigma=DEFAULT_SIGMA, seed=seed, duration_sigma=0.0)


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder of the expressive corpus")
    arguments.add_argument("--speaker", required=True, help="who speaks, and whose recordings are the evidence")
    arguments.add_argument("--pool", type=int, default=200, help="recordings to choose from (default: %(default)s)")
    arguments.add_argument("--evidence", type=int, default=12, help="recordings of a style (default: %(default)s)")
    arguments.add_argument("--lambda", dest="strength", type=float, default=1e-4, help="(default: %(default)s)")
    options = arguments.parse_args()
    voice = load(options)
    factors = read_factors(options.corpus)
    utterances = [u for u in read_filelist(options.corpus / "train.txt") if u.speaker == options.speaker][
        : options.pool
    ]
    if len(utterances) < 2 * options.evidence:
        raise InputError(f"{options.corpus}: {len(utterances)} recordings of {options.speaker!r} are too few.")
    asked = [(text, seed) for text in SENTENCES for seed in range(options.seeds)]
    by_itself = [speak(voice, text, options.speaker, seed, None, "") for text, seed in asked]
    rows: list[dict[str, Any]] = []
    each: list[dict[str, Any]] = []
    checks: dict[str, str] = {}
    styles = [style for style in STYLES if style.factor != "rate"]
    figure = Figure(figsize=(3 * len(styles), 3), layout="constrained")
    for axes, style in zip(figure.subplots(1, len(styles)), styles):
        numbers = chosen(style, utterances, factors, options.evidence)
        encodings = encode(voice, [utterances[k] for k in numbers], options.speaker)
        posterior = Posterior.of([encoding.z for encoding in encodings], options.strength, "time_and_batch")
        shifts: dict[str, np.ndarray] = {}
        for way in WAYS:
            found = []
            for (text, seed), before in zip(asked, by_itself):
                speech = speak(voice, text, options.speaker, seed, posterior, way)
                found.append(quarters(style, speech, before, voice.settings.hop_length))
                named = {f"quarter {n}": round(shift, 4) for n, shift in enumerate(found[-1], 1)}
                each.append({"style": style.name, "way": way, "text": text, "seed": seed, **named})
                if seed < 2:
                    speech.save(options.output / "wavs" / f"{style.name}_{way}_{SENTENCES.index(text)}_seed{seed}.wav")
            shifts[way] = np.array(found)
            courses = [mean_interval(course) for course in zip(*found)]
            rows.append(
                {"style": style.name, "unit": style.unit, "evidence": way}
                | {f"quarter {n}": shown(course) for n, course in enumerate(courses, 1)}
            )
            print(rows[-1], flush=True)
            axes.plot(range(1, QUARTERS + 1), [course[0] for course in courses], marker="o", label=way)
        axes.set(title=style.name, xlabel="quarter", ylabel=f"shift in {style.unit}")
        differences = style.sign * (shifts["towards"] - shifts["away"])
        halves = np.nanmean(differences[:, : QUARTERS // 2], 1), np.nanmean(differences[:, QUARTERS // 2 :], 1)
        checks[f"{style.name}: away over towards in the first half"] = shown(mean_interval(-halves[0]))
        checks[f"{style.name}: towards over away in the second half"] = shown(mean_interval(halves[1]))
        axes.legend()
    for (text, seed), speech in zip(asked, by_itself):
        if seed < 2:
            speech.save(options.output / "wavs" / f"baseline_{SENTENCES.index(text)}_seed{seed}.wav")
    figure.savefig(options.output / "over_time.png", dpi=100)
    write_results(options, rows, each, checks)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
