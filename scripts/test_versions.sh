#!/usr/bin/env bash
# Runs the tests of the model, text, sound and checkpoints with the lowest and with the newest versions that setup.py
# allows, each in an environment of its own:  scripts/test_versions.sh [FOLDER] [lowest|highest ...]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-/tmp/flowtron-versions}
shift || true
[ $# -gt 0 ] || set -- lowest highest
tests="config text audio optim checkpoint convert convert_foreign parity_model model numerics kernels_lstm kernels_step train"
for which in "$@"; do
    environment=$folder/$which
    python3 -m venv "$environment"
    python=$environment/bin/python
    tools=("pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100")
    if [ "$which" = lowest ]; then
        "$python" -m pip install --quiet uv
        "$environment/bin/uv" pip install --quiet --python "$python" --resolution lowest-direct "$root" "${tools[@]}"
    else
        "$python" -m pip install --quiet --upgrade "$root" "${tools[@]}"
    fi
    "$python" -c "import torch, numpy, librosa
print('$which: torch', torch.__version__, 'numpy', numpy.__version__, 'librosa', librosa.__version__)"
    # shellcheck disable=SC2046,SC2086
    (cd "$root" && PYTHONPATH=. OMP_NUM_THREADS=1 "$python" -m pytest -q $(printf 'tests/test_%s.py ' $tests))
done
