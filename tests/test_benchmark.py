"""What the benchmarks do with their figures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import bench_common
import benchmark


def test_figures_take_the_place_of_a_section(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_common, "said", [])
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- data -->\nold\n<!-- end of data -->\nAfter\n")
    content = benchmark.document("two cores", {"speedup": 3.25, "other": None}, {"speedup": "at least 3"}, "run me")
    for _ in range(2):
        benchmark.write_section(page, "data", content)
        text = page.read_text()
        assert "| `speedup` | 3.25 | at least 3 |\n| `other` | not measured |  |" in text
        assert "old" not in text and text.startswith("Before\n<!-- data -->\n") and text.endswith("-->\nAfter\n")
    with pytest.raises(SystemExit, match="are missing"):
        benchmark.write_section(page, "training", content)


def test_memory_is_that_of_the_program_alone():
    ballast = bytearray(300 << 20)
    assert bench_common.peak_memory_mb("x = bytearray(50 << 20)") < 150 < len(ballast) >> 20


def test_contenders_take_turns():
    order = []
    seconds = bench_common.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ababab") and [len(turns) for turns in seconds.values()] == [2, 2]
