"""The HTTP API against its own published description: Schemathesis sends what it allows, and what it does not.

    python scripts/schema_test.py VOICE [--examples 50]

It starts `flowtron serve` on a free port of the loopback address and stops it again. Needs `pip install schemathesis`.
"""

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from load_test import HOST, serve, stop, wait_until_ready

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voice", help="checkpoint folder or bundled voice")
    parser.add_argument("--examples", type=int, default=50, help="for each operation (default: %(default)s)")
    options = parser.parse_args()
    program = Path(sysconfig.get_path("scripts")) / "schemathesis"
    server, port = serve(options.voice, ["--max-text", "100"])
    try:
        wait_until_ready(port)
        command = [str(program), "run", f"http://{HOST}:{port}/openapi.json", "--checks", CHECKS, "--seed", "1"]
        command += ["--max-examples", str(options.examples), "--request-timeout", "120", "--phases", "examples,fuzzing"]
        return subprocess.run(command, check=False).returncode
    finally:
        stop(server)


if __name__ == "__main__":
    sys.exit(main())
