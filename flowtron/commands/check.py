"""Look through a filelist and its recordings: what to drop, what to look at, and a cleaned list."""

import argparse
from pathlib import Path

from flowtron.commands import Outcome, check_picture, check_writable, progress_bar

EXAMPLES = """\
flowtron check corpus/train.txt
flowtron check corpus/train.txt -o corpus/train_clean.txt --plot corpus.png
flowtron check corpus/train.txt --strict --quiet      exit code 1 when a line should go, for scripts
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron check`."""
    parser.add_argument("filelist", help="lines path|text|speaker")
    parser.add_argument(
        "-o", "--output", default=None, help="cleaned list to write; NAME_clean.txt beside it if absent"
    )
    parser.add_argument("--plot", default=None, help="picture to write; NAME_check.png beside the list if absent")
    parser.add_argument("--sample-rate", type=int, default=22050, help="in Hz that training expects")
    parser.add_argument("--examples", type=int, default=2, help="shown for each kind of finding (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when there is a line to drop")
    parser.add_argument("--workers", type=int, default=None, help="processes; one for each processor if absent")


def run(options: argparse.Namespace) -> Outcome:
    """Check, tabulate, draw, and write the cleaned list."""
    from flowtron.check import KINDS, check, figure, table, write_clean

    filelist = Path(options.filelist)
    clean = Path(options.output) if options.output else filelist.with_name(f"{filelist.stem}_clean.txt")
    picture = Path(options.plot) if options.plot else filelist.with_name(f"{filelist.stem}_check.png")
    check_writable(clean, picture)
    check_picture(picture)
    with progress_bar("checking", options) as show:
        result = check(filelist, options.sample_rate, workers=options.workers, progress=show)
    figure(result).savefig(picture, dpi=100)
    lines = [table(result, options.examples), ""]
    written = [picture]
    if result.kept:
        write_clean(result, clean)
        written.append(clean)
    else:
        lines.append("no line stays, so no cleaned list is written")
    lines.append(f"wrote {', '.join(map(str, written))}")
    values = {
        "lines": result.n_lines,
        "kept": len(result.kept),
        "dropped": sorted(result.dropped),
        "findings": [{**finding._asdict(), "drops": KINDS[finding.kind][0]} for finding in result.findings],
        "files": [str(path) for path in written],
    }
    return Outcome("\n".join(lines), values, code=int(options.strict and bool(result.dropped)))
