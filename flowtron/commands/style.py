"""Speak in the style of recordings, with their rhythm, or between two voices.

Where a model predicts durations, these are no part of z: `speak` takes the evidence's tempo along unless --rate is
given. `mixture` without a text tells how recordings are shared among the components of the prior.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtron.commands import (
    Outcome,
    add_common_options,
    add_voice_options,
    check_no_input,
    check_picture,
    check_writable,
    load_voice,
    progress_bar,
    tell_notes,
)
from flowtron.errors import InputError
from flowtron.passages import typed_silence

if TYPE_CHECKING:
    from torch import Tensor

    from flowtron.data import Utterance
    from flowtron.inference import Latent
    from flowtron.speech import Speech
    from flowtron.style import Encoding, Evidence, Posterior
    from flowtron.synthesizer import Synthesizer

EXAMPLES = """\
flowtron style encode -e excited.txt -i heart -o excited.npz
flowtron style speak "Humans are walking on the streets?" -e excited.npz -i heart -o excited.wav
flowtron style speak "Hello." -e take.wav --transcript "I am so happy." -i heart --lambda 0.1 --aggregation batch -s 0.3
flowtron style transfer -e take.wav --transcript "I am so happy." -i joe --what rhythm -o joe.wav
flowtron style interpolate "Somewhere in between." --speakers heart joe --weight 0.5
flowtron style interpolate "From one reading to another." --seeds 1 2 --weight 0:0,1:1 --spherical -s 0.8 -i heart
flowtron style interpolate "From monotone to excited." -e excited.npz --weight 0:0,1:1
flowtron style interpolate "From calm to lively." --speakers heart joe --weight 0 -s 0:0.1,1:0.8
flowtron style mixture "One of several." -m runs/mixture --component 2 --translate 7:2
flowtron style mixture -e corpus/test.txt -m runs/mixture --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron style`."""
    # Without defaults, so that what is given before the action holds.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_common_options(common)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (function, groups) in ACTIONS.items():
        help = (function.__doc__ or "").rstrip(".")
        action = actions.add_parser(name, help=help, description=function.__doc__, parents=[common])
        for group in groups:
            group(action)
        add_voice_options(action)
        action.add_argument("-i", "--speaker", default=None, help="who speaks, by name or number; the first if absent")
        default = DEFAULT_OUTPUTS.get(name, SOUND)
        action.add_argument("-o", "--output", default=default, help="file to write (default: %(default)s)")


def _text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="what to say")


def _evidence_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e",
        "--evidence",
        action="append",
        default=[],
        help="a filelist path|text|speaker, an .npz of `encode`, or a recording with --transcript; may be repeated",
    )
    parser.add_argument("--transcript", action="append", default=[], help="what is said in each recording of -e")


def _posterior_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lambda",
        dest="strength",
        type=float,
        default=1e-4,
        help="variance of the evidence around z: small follows it, large leaves the prior (default: %(default)s)",
    )
    parser.add_argument(
        "--aggregation",
        choices=("time_and_batch", "batch"),
        default="time_and_batch",
        help="mean over frames and evidence, or over the evidence frame by frame (default: %(default)s)",
    )
    parser.add_argument("--frames", type=int, default=300, help="of the mean over a batch (default: %(default)s)")
    parser.add_argument(
        "--posterior-sigma", action="store_true", help="draw with the posterior's own variance in place of sigma"
    )


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s",
        "--sigma",
        default=None,
        help="standard deviation of z, more is livelier; or SHARE:SIGMA,... over the utterance, such as 0:0.1,1:0.8",
    )
    parser.add_argument("--seed", type=int, default=1234, help="of the draw of z (default: %(default)s)")
    parser.add_argument("--plot", default=None, help="picture of mel and attention to write")


def _rate_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=None, help="speaking rate, 2 is twice as fast")


def _transfer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--what", choices=("rhythm", "alignment"), default="rhythm", help="durations, or the attention itself"
    )
    parser.add_argument(
        "--from-posterior",
        action="store_true",
        help="draw z from the posterior of the recording, in place of the prior",
    )


def _between_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speakers", nargs=2, default=None, metavar="NAME", help="two speakers")
    parser.add_argument("--seeds", nargs=2, type=int, default=None, metavar="SEED", help="two draws of z")
    parser.add_argument("--spherical", action="store_true", help="along the sphere, which keeps the size of z")
    parser.add_argument(
        "--weight",
        default="0.5",
        help="of the second, or SHARE:WEIGHT,... over the utterance, such as 0:0,1:1 (default: %(default)s)",
    )


def _mixture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--component", type=int, default=None, help="by number; drawn by its probability if absent")
    parser.add_argument(
        "--translate",
        action="append",
        default=[],
        metavar="DIMENSION:DEVIATIONS",
        help="move the component's mean in one dimension, by its standard deviations",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Do what the action says."""
    suffix = Path(DEFAULT_OUTPUTS.get(options.action, SOUND)).suffix
    if Path(options.output).suffix.lower() != suffix:
        raise InputError(f"{options.output}: {options.action} writes {suffix}; choose that suffix.")
    plot = getattr(options, "plot", None)
    check_writable(options.output, plot)
    check_no_input(getattr(options, "evidence", ()), options.output, plot)
    check_picture(plot)
    function, _ = ACTIONS[options.action]
    return function(options)


def encode(options: argparse.Namespace) -> Outcome:
    """Write recordings as evidence."""
    voice, evidence, notes = _with_evidence(options)
    tell_notes(notes, options)
    path = evidence.save(options.output)
    frames = sum(z.shape[1] for z in evidence.z)
    speaker = None if voice.flowtron.dummy_speaker else evidence.speaker
    by = "" if speaker is None else f" as {speaker}"
    text = f"{len(evidence.z)} recordings{by}, {frames} frames, tempo {evidence.tempo:.3f}: {path}"
    return Outcome(
        text,
        {
            "file": str(path),
            "recordings": len(evidence.z),
            "frames": frames,
            "speaker": speaker,
            "tempo": evidence.tempo,
            "size": [float(z.square().mean().sqrt()) for z in evidence.z],
            "notes": notes,
        },
    )


def speak(options: argparse.Namespace) -> Outcome:
    """Speak a text in the style of evidence."""
    text = _text(options)
    voice, evidence, notes = _with_evidence(options)
    posterior = _posterior(evidence.z, options)
    sampling = _sampling(options)
    if "rate" not in sampling:
        sampling["rate"] = _followed_rate(posterior.rate(evidence.tempo), notes)
    z = _posterior_source(voice, posterior, options)
    speech = voice.render(text, _who(voice, evidence, options), z=z, seed=options.seed, **sampling)
    values = {"recordings": len(evidence.z), "rate": sampling["rate"], "weight": posterior.weight}
    return _written(voice, speech, options, values, notes)


def transfer(options: argparse.Namespace) -> Outcome:
    """Speak a recording's words with its rhythm or alignment."""
    from flowtron.style import encode as encode_recordings
    from flowtron.style import odd_tempo, prior_source, tempo, transfer_alignment, transfer_rhythm

    if not options.from_posterior:
        _refuse_without_evidence(options, "add --from-posterior, or leave them out")
    utterances = _recordings(options)
    if len(utterances) != 1:
        raise InputError(f"transfer speaks the words of one recording, but was given {len(utterances)}; name one.")
    voice = load_voice(options)
    # The recording's own speaker may be none of the voice's; what aligns it best is who will speak.
    own = utterances[0].speaker in voice.speakers
    (encoding,) = encode_recordings(voice, utterances, None if own else voice.speaker_id(options.speaker))
    if options.from_posterior:
        # Evidence is encoded as who will speak.
        (evidence,) = encode_recordings(voice, utterances, voice.speaker_id(options.speaker))
        z = _posterior_source(voice, _posterior([evidence.z], options), options)
    else:
        z = prior_source(voice, options.seed, _sigma(options))
    function = transfer_rhythm if options.what == "rhythm" else transfer_alignment
    speech = function(voice, encoding, voice.speaker_id(options.speaker), z)
    notes = odd_tempo(str(encoding.utterance.path), tempo(voice, [encoding]))
    return _written(voice, speech, options, {"what": options.what}, notes)


def interpolate(options: argparse.Namespace) -> Outcome:
    """Speak a text between two speakers, two draws, or a draw and evidence."""
    from flowtron.style import blend_speakers, interpolation_source, prior_source

    text = _text(options)
    if sum(map(bool, (options.speakers, options.seeds, options.evidence))) != 1:
        raise InputError(
            "interpolate goes between two speakers, two draws, or a draw and evidence; give either --speakers, --seeds "
            "or -e."
        )
    if options.spherical and options.speakers:
        raise InputError("--spherical is a way between two draws of z; leave it out with --speakers, or give --seeds.")
    if options.speakers and options.speaker is not None:
        raise InputError("-i is who speaks, but --speakers names both; leave one of them out.")
    if not options.evidence:
        if options.transcript:
            raise InputError("--transcript is of a recording; name it with -e.")
        _refuse_without_evidence(options, "give it with -e, or leave them out")
    weight = _number_or_points(options.weight, "--weight", 1.0)
    sampling = _sampling(options)
    speaker: str | None = options.speaker
    notes: list[str] = []
    if options.evidence:
        voice, evidence, notes = _with_evidence(options)
        posterior, speaker = _posterior(evidence.z, options), _who(voice, evidence, options)
        # As far along to the evidence's rate as the weight is on average.
        if "rate" not in sampling:
            sampling["rate"] = _followed_rate(posterior.rate(evidence.tempo) ** _mean(weight), notes)
        prior = prior_source(voice, options.seed, _sigma(options))
        z = interpolation_source(prior, _posterior_source(voice, posterior, options), weight, options.spherical)
    elif options.seeds:
        voice = load_voice(options)
        draws = [prior_source(voice, seed, _sigma(options)) for seed in options.seeds]
        z = interpolation_source(draws[0], draws[1], weight, options.spherical)
    else:
        first, second = options.speakers
        voice, speaker = blend_speakers(load_voice(options), first, second, weight, text)
        z = prior_source(voice, options.seed, _sigma(options))
    speech = voice.render(text, speaker, z=z, seed=options.seed, **sampling)
    return _written(voice, speech, options, {"weight": weight}, notes)


def _shares(voice: "Synthesizer", options: argparse.Namespace) -> Outcome:
    """How recordings are shared among the components, by speaker and for each."""
    from flowtron.style import component_shares

    encodings = _encoded(voice, _recordings(options), options.speaker, options)
    shares = {name: row.tolist() for name, row in component_shares(encodings).items()}
    recordings = [
        {
            "path": str(each.utterance.path),
            "speaker": each.utterance.speaker or "unknown",
            "shares": each.mixture.prob[0].tolist(),
        }
        for each in encodings
        if each.mixture is not None
    ]
    rows = [f"{name:16s}" + "".join(f"{p:8.3f}" for p in row) for name, row in shares.items()]
    title = f"{'speaker':16s}" + "".join(f"{k:8d}" for k in range(len(next(iter(shares.values())))))
    return Outcome("\n".join([title, *rows]), {"shares": shares, "recordings": recordings})


def mixture(options: argparse.Namespace) -> Outcome:
    """Speak from a component of a mixture prior, or tell how recordings are shared among the components."""
    from flowtron.style import prior_source, translate

    speaks = {"--component": options.component is not None, "--translate": options.translate, "--plot": options.plot}
    speaks |= {"-o": options.output != SOUND}
    if not options.text and any(speaks.values()):
        asked = ", ".join(name for name in speaks if speaks[name])
        raise InputError(f"{asked}: there is no text to speak; give one, in place of -e.")
    if options.text and options.evidence:
        raise InputError("mixture either speaks a text or tells how recordings are shared; leave out the text or -e.")
    voice = load_voice(options)
    if voice.flowtron.mixture is None:
        raise InputError("this model's prior is no mixture; train one with model_config.n_components of 2 or more.")
    if not options.text:
        return _shares(voice, options)
    import torch

    with torch.inference_mode():
        prior = voice.flowtron.mixture.unconditional()
    n_components, n_dimensions = prior.prob.shape[1], prior.mean.shape[1]
    chosen = range(n_components) if options.component is None else [options.component]
    for each in options.translate:
        dimension, deviations = _pair(each, "--translate")
        if dimension != int(dimension) or not 0 <= dimension < n_dimensions:
            raise InputError(f"--translate {each}: dimensions are 0 to {n_dimensions - 1}; choose one of them.")
        for component in chosen:
            if 0 <= component < n_components:
                prior = translate(prior, component, int(dimension), deviations)
    sampling = _sampling(options)
    z = prior_source(voice, options.seed, _sigma(options), prior, options.component)
    speech = voice.render(_text(options), options.speaker, z=z, seed=options.seed, **sampling)
    return _written(voice, speech, options, {"component": options.component})


SOUND = "style.wav"
DEFAULT_OUTPUTS = {"encode": "style.npz"}
Group = Callable[[argparse.ArgumentParser], None]
ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], Outcome], tuple[Group, ...]]] = {
    "encode": (encode, (_evidence_options,)),
    "speak": (speak, (_text_options, _evidence_options, _posterior_options, _sampling_options, _rate_option)),
    "transfer": (transfer, (_evidence_options, _transfer_options, _posterior_options, _sampling_options)),
    "interpolate": (
        interpolate,
        (_text_options, _between_options, _evidence_options, _posterior_options, _sampling_options, _rate_option),
    ),
    "mixture": (mixture, (_text_options, _evidence_options, _mixture_options, _sampling_options, _rate_option)),
}


def _text(options: argparse.Namespace) -> str:
    text = " ".join(options.text)
    if not any(character.isalnum() for character in text):
        raise InputError(f"the text is {text[:60]!r}, with nothing to speak; give it at least one word.")
    if typed_silence(text):
        raise InputError("style speaks a text at once, without typed pauses; leave them out, or use flowtron say.")
    return text


def _sigma(options: argparse.Namespace) -> float | list[tuple[float, float]]:
    from flowtron.synthesizer import DEFAULT_SIGMA

    return DEFAULT_SIGMA if options.sigma is None else _number_or_points(options.sigma, "--sigma")


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the synthesis; durations are drawn with the mean of a sigma over time."""
    sampling = {"sigma": _mean(_sigma(options))}
    return sampling if getattr(options, "rate", None) is None else {**sampling, "rate": options.rate}


def _followed_rate(rate: float, notes: Sequence[str]) -> float:
    """The rate that follows evidence.

    Raises:
        InputError: nobody speaks so fast or slowly, and a transcript must be wrong.
    """
    from flowtron.inference import LEAST_RATE, MOST_RATE

    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(f"{notes[0]}, or choose a --rate yourself.")
    return rate


def _mean(values: float | list[tuple[float, float]]) -> float:
    """A number, or the mean over the utterance of the curve through points."""
    from flowtron.style import curve

    return values if isinstance(values, float) else float(curve(values, 100).mean())


def _posterior(evidence: Sequence["Tensor"], options: argparse.Namespace) -> "Posterior":
    from flowtron.style import Posterior

    return Posterior.of(evidence, options.strength, options.aggregation, options.frames)


def _refuse_without_evidence(options: argparse.Namespace, why: str) -> None:
    """Refuse options of the posterior where there is none."""
    unused = argparse.ArgumentParser(add_help=False)
    _posterior_options(unused)
    if any(getattr(options, name) != value for name, value in vars(unused.parse_args([])).items()):
        raise InputError(f"--lambda, --aggregation, --frames and --posterior-sigma are of evidence; {why}.")


def _posterior_source(voice: "Synthesizer", posterior: "Posterior", options: argparse.Namespace) -> "Latent":
    return posterior.source(options.seed, None if options.posterior_sigma else _sigma(options), voice)


def _recordings(options: argparse.Namespace) -> list["Utterance"]:
    """Utterances of filelists, and of recordings with their transcripts."""
    from flowtron.data import Utterance, read_filelist

    if not options.evidence:
        raise InputError("there is no evidence; give a filelist, or a recording with its --transcript, with -e.")
    found: list[Utterance] = []
    transcripts = list(options.transcript)
    for name in options.evidence:
        if Path(name).suffix.lower() == ".txt":
            found += read_filelist(name)
        elif not transcripts:
            raise InputError(f"{name}: what is said in it must be known; give --transcript.")
        else:
            found.append(Utterance(Path(name), transcripts.pop(0), ""))
    if transcripts:
        raise InputError(f"--transcript {transcripts[0]!r} belongs to no recording; name one with -e for each.")
    return found


def _with_evidence(options: argparse.Namespace) -> tuple["Synthesizer", "Evidence", list[str]]:
    """The voice, the evidence encoded as the speaker who will speak, and notes about it."""
    from flowtron.style import Evidence, fingerprint, odd_tempo, tempo

    saved = [Path(name) for name in options.evidence if Path(name).suffix.lower() == ".npz"]
    if saved and (len(options.evidence) > 1 or options.transcript):
        raise InputError(f"{saved[0]}: an .npz is all the evidence; encode all recordings together.")
    utterances = [] if saved else _recordings(options)
    voice = load_voice(options)
    if saved:
        evidence = Evidence.load(saved[0])
        n_mels = voice.flowtron.n_mels
        if any(len(z) != n_mels for z in evidence.z):
            raise InputError(f"{saved[0]}: its z are not of {n_mels} channels as this model's; encode with this model.")
        if evidence.model not in ("", fingerprint(voice)):
            raise InputError(f"{saved[0]}: its z are another model's; encode the recordings with this one.")
        if options.speaker is not None and not voice.flowtron.dummy_speaker:
            row = voice.speaker_id(options.speaker)
            speaker = voice.speakers[row] if row < len(voice.speakers) else str(row)
            if evidence.speaker != speaker:
                raise InputError(
                    f"{saved[0]}: it was encoded as {evidence.speaker}, but {speaker} is to speak; encode it with -i "
                    f"{speaker}, or choose {evidence.speaker} with -i."
                )
        return voice, evidence, odd_tempo(str(saved[0]), evidence.tempo)
    encodings = _encoded(voice, utterances, voice.speaker_id(options.speaker), options)
    notes = [note for each in encodings for note in odd_tempo(str(each.utterance.path), tempo(voice, [each]))]
    return voice, Evidence.of(voice, encodings), notes


def _who(voice: "Synthesizer", evidence: "Evidence", options: argparse.Namespace) -> str | None:
    """Who speaks: as whom the evidence was encoded, where the model minds."""
    return options.speaker if voice.flowtron.dummy_speaker else evidence.speaker


def _encoded(
    voice: "Synthesizer", utterances: Sequence["Utterance"], speaker: str | int | None, options: argparse.Namespace
) -> list["Encoding"]:
    from flowtron.style import encode as encode_recordings

    with progress_bar("encoding", options) as show:
        return encode_recordings(voice, utterances, speaker, lambda done: show(done / len(utterances)))


def _pair(text: str, option: str) -> tuple[float, float]:
    first, _, second = text.partition(":")
    expected = "two numbers as in 0.5:1"
    return _number(first, option, text, expected), _number(second, option, text, expected)


def _number_or_points(text: str, option: str, most: float = math.inf) -> float | list[tuple[float, float]]:
    """A value from 0 to `most`, or points (share of the utterance, value) in order."""
    points = [_pair(point, option) for point in text.split(",")] if ":" in text else None
    number = _number(text, option, text, "a number, or points such as 0:0,1:1") if points is None else 0.0
    if not all(0 <= value <= most for value in ([number] if points is None else [value for _, value in points])):
        bounds = "0 or more" if math.isinf(most) else f"0 to {most:g}"
        raise InputError(f"{option} {text}: expected values of {bounds}; correct it.")
    if points is None:
        return number
    shares = [share for share, _ in points]
    if shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise InputError(f"{option} {text}: expected shares of the utterance from 0 to 1 in order; correct it.")
    return points


def _number(text: str, option: str, given: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{option} {given}: expected {expected}; correct it.")
    return number


def _written(
    voice: "Synthesizer",
    speech: "Speech",
    options: argparse.Namespace,
    values: dict[str, Any],
    notes: Sequence[str] = (),
) -> Outcome:
    """Write the sound and its picture, and tell of it and of what went into it."""
    written = [speech.save(options.output)]
    if options.plot:
        written.append(speech.plot(options.plot))
    notes = [*notes, *speech.notes]
    tell_notes(notes, options)
    files = ", ".join(map(str, written))
    # A model that does not listen to speakers has no name for its voice.
    speaker = None if voice.flowtron.dummy_speaker else speech.speaker
    values = {"files": [str(path) for path in written], "seconds": speech.seconds, "speaker": speaker, **values}
    by = "" if speaker is None else f" by {speaker}"
    return Outcome(f"{speech.seconds:.2f} s{by}: {files}", {**values, "notes": notes})
