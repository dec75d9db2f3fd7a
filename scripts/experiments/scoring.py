"""Experiment e: find wrong transcripts and damaged recordings by exact likelihood.

    python scripts/experiments/scoring.py -m MODEL --corpus corpus/test.txt -o results/scoring

Of a corpus, 5 % of the transcripts are shuffled among each other and 5 % of the recordings damaged (clipped at a
quarter of their peak, white noise at 20 dB, three gaps of 50 ms, a third each); each seed chooses others. The corpus
is scored by `flowtron.score` with its defaults, and precision and recall of what it flags are counted over all seeds.
"""

import random
from pathlib import Path

import numpy as np
from common import load, parser, write_results
from matplotlib.figure import Figure

from flowtron.audio import load_wav, save_wav
from flowtron.data import Utterance, read_filelist
from flowtron.errors import exit_code_of
from flowtron.score import score_corpus

SHARE = 0.05
FIRST_SEED = 100  # the limits in flowtron.score were set looking at seeds 0 and 1
CLIP_SHARE_OF_PEAK = 0.25
NOISE_DB = 20.0
GAPS, GAP_SECONDS = 3, 0.05
KINDS = ("clipped", "noise", "gaps")


def damaged(wav: np.ndarray, kind: str, sample_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return wav (T_samples,) damaged."""
    if kind == "clipped":
        limit = CLIP_SHARE_OF_PEAK * np.abs(wav).max()
        return wav.clip(-limit, limit)
    if kind == "noise":
        power = np.mean(wav**2) / 10 ** (NOISE_DB / 10)
        return wav + generator.normal(0, np.sqrt(power), len(wav)).astype(np.float32)
    gaps = wav.copy()
    length = round(GAP_SECONDS * sample_rate)
    for start in generator.integers(0, max(1, len(wav) - length), GAPS):
        gaps[start : start + length] = 0
    return gaps


def corrupt(
    corpus: list[Utterance], folder: Path, sample_rate: int, seed: int
) -> tuple[list[Utterance], dict[int, str], set[int]]:
    """Return the corrupted corpus, which recordings are damaged and how, and whose transcripts are wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    n = max(2, round(SHARE * len(corpus)))
    chosen = random.Random(seed).sample(range(len(corpus)), 2 * n)
    generator = np.random.default_rng(seed)
    result = list(corpus)
    # Round and round, so that every one of them gets another's, which may by chance say the same.
    for k, index in enumerate(chosen[:n]):
        result[index] = result[index]._replace(text=corpus[chosen[(k + 1) % n]].text)
    wrong = {index for index in chosen[:n] if result[index].text != corpus[index].text}
    kinds = {index: KINDS[k % len(KINDS)] for k, index in enumerate(chosen[n:])}
    for index, kind in kinds.items():
        wav = load_wav(corpus[index].path, sample_rate, resample=True).numpy()
        path = folder / f"{corpus[index].path.stem}_{kind}.wav"
        save_wav(path, damaged(wav, kind, sample_rate, generator), sample_rate)
        result[index] = result[index]._replace(path=path)
    return result, kinds, wrong


def main() -> None:
    """Run the experiment."""
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", required=True, help="filelist path|text|speaker of sound recordings")
    arguments.add_argument("--limit", type=int, default=0, help="only so many recordings, chosen at random; 0 is all")
    options = arguments.parse_args()
    voice = load(options)
    corpus = read_filelist(options.corpus)
    random.Random(0).shuffle(corpus)
    corpus = corpus[: options.limit or None]
    each, figure = [], Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        folder = options.output / "wavs" / f"seed{seed}"
        utterances, kinds, wrong = corrupt(corpus, folder, voice.settings.sample_rate, seed)
        scores, problems = score_corpus(voice, utterances)
        assert not problems, problems
        for k, score in enumerate(scores):
            each.append(
                {
                    "seed": seed,
                    "path": score.utterance.path.name,
                    "truth": "wrong transcript" if k in wrong else kinds.get(k, "sound"),
                    "verdict": score.verdict,
                    "doubt": round(score.transcript_doubt, 4),
                    "damage": round(score.damage, 3),
                    "nats_per_dim": round(score.nats_per_dim, 4),
                }
            )
        print(f"seed {seed}: {len(scores)} recordings scored", flush=True)
    for truth in ("sound", "wrong transcript", *KINDS):
        points = [row for row in each if row["truth"] == truth]
        axes.scatter(
            [float(row["doubt"]) for row in points], [float(row["damage"]) for row in points], s=9, label=truth
        )
    axes.set(xlabel="doubt of the transcript", ylabel="damage", yscale="symlog")
    axes.legend()
    figure.savefig(options.output / "scores.png", dpi=100)

    def counted(name: str, is_true: list[bool], is_found: list[bool]) -> dict[str, object]:
        hits = sum(t and f for t, f in zip(is_true, is_found))
        return {
            "looked for": name,
            "there are": sum(is_true),
            "found": hits,
            "flagged": sum(is_found),
            "precision": round(hits / max(1, sum(is_found)), 3),
            "recall": round(hits / max(1, sum(is_true)), 3),
        }

    rows = [
        counted(
            "wrong transcript",
            [row["truth"] == "wrong transcript" for row in each],
            [row["verdict"] == "wrong transcript" for row in each],
        ),
        counted("damaged", [row["truth"] in KINDS for row in each], [row["verdict"] == "damaged" for row in each]),
        *(
            counted(f"- {kind}", [row["truth"] == kind for row in each], [row["verdict"] == "damaged" for row in each])
            | {"flagged": "", "precision": ""}
            for kind in KINDS
        ),
    ]
    write_results(
        options,
        rows,
        each,
        {
            "wrong transcripts at precision and recall of at least 0.95": min(rows[0]["precision"], rows[0]["recall"])
            >= 0.95,
            "damaged recordings at precision and recall of at least 0.8": min(rows[1]["precision"], rows[1]["recall"])
            >= 0.8,
        },
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
