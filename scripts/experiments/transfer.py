"""Experiment c: speak in the style of recordings whose true pitch, rate and loudness are known.

    python scripts/experiments/transfer.py -m MODEL --corpus corpus_expressive --speaker heart -o results/transfer

The expressive corpus (scripts/make_corpus.py --expressive) varies pitch, rate and loudness by utterance and keeps the
true factors beside it. For each of six styles the recordings that have most of it are the evidence: they are encoded
as the one who speaks, and other sentences are spoken from the posterior of their z (time and batch) at their tempo,
with the same seeds as the baseline, which is the voice by itself. The shift of a style is the mean difference to the
baseline, over seeds and sentences; its share is that of the true difference between the evidence and the whole corpus.
p is of a two-sided permutation test that flips the signs of the paired differences.

    python scripts/make_strangers.py --sentences corpus/test.txt --output strangers
    python scripts/experiments/transfer.py -m MODEL --corpus strangers --of slt --speaker heart -o results/transfer_slt

Evidence can be another's (`--of`), of a speaker that the voice knows or has never heard. Another's recordings differ
from the one who speaks by more than a style, so that the baseline is then spoken from the posterior of all of theirs,
and tempo is told against their usual one; how far a style is from the voice by itself is a column of its own.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import SENTENCES, level_db, load, mean_interval, parser, shown, write_results
from matplotlib.figure import Figure

from flowtron.data import Utterance, read_filelist
from flowtron.errors import InputError, exit_code_of
from flowtron.evaluate import pitch
from flowtron.speech import Speech
from flowtron.style import Encoding, Evidence, Posterior, encode
from flowtron.synthesizer import DEFAULT_SIGMA, Synthesizer

PERMUTATIONS = 10_000
LEAST_SHARE, MOST_P, LEAST_STYLES = 0.4, 0.01, 3


@dataclass(frozen=True)
class Style:
    """A style: its name, the factor it is at an end of, at which (1 or −1), and how that factor is measured."""

    name: str
    factor: str
    sign: int

    @property
    def unit(self) -> str:
        """Of the factor's shift."""
        return {"semitones": "semitones", "rate": "log rate", "gain_db": "dB"}[self.factor]


STYLES = (
    Style("high", "semitones", 1),
    Style("low", "semitones", -1),
    Style("fast", "rate", 1),
    Style("slow", "rate", -1),
    Style("loud", "gain_db", 1),
    Style("soft", "gain_db", -1),
)


def read_factors(corpus: Path) -> dict[str, dict[str, float]]:
    """True factors by file name; the rate as its logarithm, so that shifts add up.

    Raises:
        InputError: the corpus has none.
    """
    path = corpus / "factors.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the corpus with scripts/make_corpus.py --expressive.")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        Path(row["path"]).name: {
            "semitones": float(row["semitones"]),
            "rate": float(np.log(float(row["rate"]))),
            "gain_db": float(row["gain_db"]),
        }
        for row in rows
    }


def measure(speech: Speech, hop_length: int) -> dict[str, float]:
    """Median pitch in semitones, log of the inverse length, and level in dB, of which differences are shifts."""
    f0 = pitch(speech.wav, speech.sample_rate, hop_length)
    voiced = f0[f0 > 0]
    return {
        "semitones": 12 * float(np.log2(np.median(voiced))) if len(voiced) else float("nan"),
        "rate": -float(np.log(speech.seconds)),
        "gain_db": level_db(speech.wav),
    }


def permutation_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference, by random signs; at least 1 / (PERMUTATIONS + 1)."""
    known = np.array([each for each in differences if np.isfinite(each)])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PERMUTATIONS, len(known)))
    extreme = (np.abs((signs * known).mean(1)) >= abs(known.mean()) - 1e-12).sum()
    return float((extreme + 1) / (PERMUTATIONS + 1))


def speak(
    voice: Synthesizer, speaker: str, seeds: int, evidence: Evidence | None, strength: float
) -> list[tuple[str, int, Speech]]:
    """Speak every sentence with every seed, from the posterior or, without evidence, from the prior."""
    spoken = []
    for text in SENTENCES:
        for seed in range(seeds):
            options: dict[str, Any] = {"sigma": DEFAULT_SIGMA, "seed": seed}
            if evidence is not None:
                posterior = Posterior.of(evidence.z, strength, "time_and_batch")
                options |= {"z": posterior.source(seed, DEFAULT_SIGMA, voice), "rate": posterior.rate(evidence.tempo)}
            spoken.append((text, seed, voice.render(text, speaker, **options)))
    return spoken


def chosen(style: Style, utterances: Sequence[Utterance], factors: dict[str, dict[str, float]], n: int) -> list[int]:
    """Numbers of the n recordings that have most of a style."""
    return sorted(range(len(utterances)), key=lambda k: -style.sign * factors[utterances[k].path.name][style.factor])[
        :n
    ]


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder of the expressive corpus")
    arguments.add_argument("--speaker", required=True, help="who speaks")
    arguments.add_argument("--of", default=None, help="whose recordings are the evidence; the speaker's if absent")
    arguments.add_argument("--pool", type=int, default=200, help="recordings to choose from (default: %(default)s)")
    arguments.add_argument("--evidence", type=int, default=12, help="recordings of a style (default: %(default)s)")
    names = [style.name for style in STYLES]
    arguments.add_argument("--styles", nargs="+", choices=names, default=names, help="which (default: all)")
    arguments.add_argument("--lambda", dest="strength", type=float, default=1e-4, help="(default: %(default)s)")
    options = arguments.parse_args()
    voice = load(options)
    factors = read_factors(options.corpus)
    whose = options.of or options.speaker
    utterances = [u for u in read_filelist(options.corpus / "train.txt") if u.speaker == whose][: options.pool]
    if len(utterances) < 2 * options.evidence:
        raise InputError(f"{options.corpus}: {len(utterances)} recordings of {whose!r} are too few; name another --of.")
    hop = voice.settings.hop_length
    is_another = whose != options.speaker
    encodings: dict[int, Encoding] = {}

    def evidence_of(numbers: Sequence[int]) -> Evidence:
        missing = [k for k in numbers if k not in encodings]
        encodings.update(zip(missing, encode(voice, [utterances[k] for k in missing], options.speaker)))
        return Evidence.of(voice, [encodings[k] for k in numbers])

    by_itself = speak(voice, options.speaker, options.seeds, None, options.strength)
    baseline, usual_tempo = by_itself, 1.0
    if is_another:
        usual = evidence_of(range(len(utterances)))
        usual_tempo = usual.tempo
        baseline = speak(voice, options.speaker, options.seeds, usual._replace(tempo=1.0), options.strength)
    alone = [measure(speech, hop) for _, _, speech in by_itself]
    before = [measure(speech, hop) for _, _, speech in baseline] if is_another else alone
    rows, each = [], []
    shares: dict[str, tuple[float, float, float]] = {}
    met: list[bool] = []
    styles = [style for style in STYLES if style.name in options.styles]
    for style in styles:
        numbers = chosen(style, utterances, factors, options.evidence)
        evidence = evidence_of(numbers)
        evidence = evidence._replace(tempo=evidence.tempo / usual_tempo)
        everyone = [factors[u.path.name][style.factor] for u in utterances]
        true = float(np.mean([everyone[k] for k in numbers]) - np.mean(everyone))
        spoken = speak(voice, options.speaker, options.seeds, evidence, options.strength)
        after = [measure(speech, hop) for _, _, speech in spoken]
        shifts = [b[style.factor] - a[style.factor] for a, b in zip(before, after)]
        interval = mean_interval(shifts)
        low, high = sorted(bound / true for bound in interval[1:])
        shares[style.name] = interval[0] / true, low, high
        p = permutation_p(shifts)
        met.append(shares[style.name][0] >= LEAST_SHARE and p < MOST_P)
        rows.append(
            {
                "style": style.name,
                "unit": style.unit,
                "true difference": f"{true:.2f}",
                "shift": shown(interval),
                "share": shown(shares[style.name]),
                "p": f"{p:.4f}",
                "other shifts": ", ".join(
                    f"{factor} {np.nanmean([b[factor] - a[factor] for a, b in zip(before, after)]):+.2f}"
                    for factor in ("semitones", "rate", "gain_db")
                    if factor != style.factor
                ),
            }
        )
        if is_another:
            rows[-1]["from the voice by itself"] = shown(
                mean_interval([b[style.factor] - a[style.factor] for a, b in zip(alone, after)])
            )
        print(rows[-1], flush=True)
        for (text, seed, speech), shift in zip(spoken, shifts):
            each.append({"style": style.name, "text": text, "seed": seed, "shift": round(shift, 4)})
            if seed < 2:
                name = f"{style.name}_{SENTENCES.index(text)}_seed{seed}.wav"
                speech.save(options.output / "wavs" / name)
    for text, seed, speech in baseline:
        if seed < 2:
            speech.save(options.output / "wavs" / f"baseline_{SENTENCES.index(text)}_seed{seed}.wav")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    values = np.array([shares[style.name] for style in styles])
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axes.bar([style.name for style in styles], values[:, 0], yerr=errors, capsize=3)
    axes.axhline(LEAST_SHARE, color="black", linestyle="dotted")
    axes.set(ylabel="share of the true difference")
    figure.savefig(options.output / "shares.png", dpi=100)
    goal = f"styles that move by at least {LEAST_SHARE:.0%} of the true difference, p < {MOST_P}"
    write_results(options, rows, each, {goal: sum(met), f"at least {LEAST_STYLES} of them": sum(met) >= LEAST_STYLES})


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
