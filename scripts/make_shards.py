"""Write a filelist's utterances as tar shards with their mels, for training on a corpus larger than one disk.

    python scripts/make_shards.py -c configs/ljspeech.json --filelist filelists/train.txt --output shards/train

Then train with data_config.training_files=shards/train/index.json. Shards may be moved to any place that webdataset
reads; the index holds a file name or URL for each.
"""

import argparse
import sys

from flowtron.config import load_config
from flowtron.data import Dataset, SpeakerTable, read_filelist
from flowtron.errors import exit_code_of
from flowtron.shards import write_shards
from flowtron.train import prepare_tokenizer


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", required=True, help="JSON config with the audio settings")
    parser.add_argument("-p", "--params", nargs="*", action="extend", default=[], metavar="section.key=value")
    parser.add_argument("--filelist", required=True, help="path|text|speaker lines")
    parser.add_argument("--output", required=True, help="folder for shards and index.json")
    parser.add_argument("--utterances", type=int, default=1000, help="utterances a shard")
    options = parser.parse_args()

    def work() -> None:
        config = load_config(options.config, options.params)
        utterances = read_filelist(options.filelist)
        data = config.data
        dataset = Dataset(
            utterances,
            prepare_tokenizer(config),
            config.audio_settings(),
            SpeakerTable.from_utterances(utterances),
            resample=data.resample,
            trim_db=data.trim_db,
        )
        print(write_shards(dataset, options.output, options.utterances))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
