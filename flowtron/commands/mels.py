"""Write the mels that a voice predicts along recordings, to fine-tune a vocoder on them."""

import argparse
from pathlib import Path

from flowtron.commands import Outcome, add_voice_options, load_voice, progress_bar

EXAMPLES = """\
flowtron mels corpus/train.txt predicted -m runs/demo
flowtron mels corpus/train.txt predicted --sigma 0.5
flowtron train -c configs/source_filter.json -p vocoder_config.predicted_mels=predicted
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron mels`."""
    parser.add_argument("filelist", metavar="FILELIST", help="path|text|speaker of the recordings")
    parser.add_argument("folder", metavar="FOLDER", help="for NAME.npy of every NAME.wav; mels there are not made anew")
    add_voice_options(parser)
    parser.add_argument("-i", "--speaker", default=None, help="predict all recordings as this speaker's")
    parser.add_argument("-s", "--sigma", type=float, default=None, help="size of z; the voice's usual if absent")


def run(options: argparse.Namespace) -> Outcome:
    """Predict and write."""
    import numpy as np

    from flowtron.data import read_filelist
    from flowtron.encoding import encode, predict_along
    from flowtron.errors import InputError
    from flowtron.inference import DEFAULT_SIGMA
    from flowtron.tensorfile import replaced_file

    folder = Path(options.folder)
    if not folder.resolve().parent.is_dir():
        raise InputError(f"{folder}: the folder that it is to lie in does not exist; create it or choose another.")
    utterances = read_filelist(options.filelist)
    paths = {each.path: folder / f"{Path(each.path).stem}.npy" for each in utterances}
    if len(set(paths.values())) < len(paths):
        raise InputError(f"{options.filelist}: two recordings have the same file name; rename one or split the list.")
    voice = load_voice(options)
    sigma = DEFAULT_SIGMA if options.sigma is None else options.sigma
    todo = [each for each in utterances if not paths[each.path].is_file()]
    folder.mkdir(exist_ok=True)
    with progress_bar("predicting", options) as show:
        for done, utterance in enumerate(todo, 1):
            (encoding,) = encode(voice, [utterance], options.speaker)
            mel = predict_along(voice, encoding, sigma)
            with replaced_file(paths[utterance.path]) as file:
                np.save(file, mel.numpy())
            show(done / len(todo))
    return Outcome(f"wrote {len(todo)} mels to {folder}", {"written": len(todo), "folder": str(folder)})
