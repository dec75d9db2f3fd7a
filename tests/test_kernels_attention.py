"""The attention kernel and its fallback against the formula with the whole (B, T, N, A) tensor."""

import os
import subprocess
import sys

import pytest
import torch

from flowtron.kernels import attention, build
from flowtron.kernels.attention import additive_scores


def naive(query, key, score):
    return torch.tanh(query[:, :, None] + key[:, None]) @ score


def inputs(batch=2, frames=7, tokens=5, channels=12, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, frames, channels), (batch, tokens, channels), (channels,)
    return [(scale * torch.randn(s, generator=generator)).to(dtype).requires_grad_() for s in shapes]


@pytest.fixture(params=["kernel", "fallback"])
def path(request, monkeypatch):
    """Run a test with the compiled kernel and without it."""
    if request.param == "fallback":
        monkeypatch.setattr(attention, "load_library", lambda name: None)
        monkeypatch.setattr(attention, "CHUNK_ELEMENTS", 200)
    else:
        assert build.load_library("attention") is not None
    return request.param


@pytest.mark.parametrize("shape", [(2, 7, 5, 12), (1, 1, 1, 1), (3, 17, 9, 40), (2, 33, 4, 64), (1, 20, 30, 104)])
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_and_gradients_equal_the_formula(path, shape, threads):
    given = inputs(*shape)
    exact = [x.detach().double().requires_grad_() for x in given]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores = additive_scores(*given)
        weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(scores, given, weight)
    finally:
        torch.set_num_threads(before)
    wanted = naive(*exact)
    torch.testing.assert_close(scores.double(), wanted, atol=2e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, exact, weight.double())):
        torch.testing.assert_close(ours.double(), theirs, atol=5e-5, rtol=1e-5)


def test_gradcheck_in_float64():
    query, key, score = inputs(dtype=torch.float64)
    assert torch.autograd.gradcheck(additive_scores, (query, key, score))


def test_saturated_inputs_give_finite_scores_and_no_gradient(path):
    query = torch.tensor([[[100.0, -100.0, 30.0]]], requires_grad=True)
    key = torch.tensor([[[50.0, -1e5, 30.0]]], requires_grad=True)
    scores = additive_scores(query, key, torch.tensor([1.0, 2.0, 4.0]))
    assert scores.item() == pytest.approx(1 - 2 + 4, abs=1e-5)
    gradients = torch.autograd.grad(scores.sum(), (query, key))
    assert all(g.abs().max() < 1e-6 for g in gradients)


def test_half_precision_is_computed_in_float32(path):
    query, key, score = inputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = additive_scores(query, key, score)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, naive(query.float(), key.float(), score.float()), atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(scores.sum(), (query, key, score))
    assert all(g.dtype == torch.bfloat16 for g in gradients)


def test_nothing_of_the_size_of_all_pairs_is_kept(path):
    query, key, score = inputs(2, 50, 40, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        additive_scores(query, key, score).sum()
    assert sum(kept) <= query.numel() + key.numel() + score.numel() + 2 * 50 * 40


def test_empty_text_gives_empty_scores():
    query, _, score = inputs()
    assert additive_scores(query, torch.zeros(2, 0, 12), score).shape == (2, 7, 0)


SCRIPT = "from flowtron.kernels.build import load_library; print(load_library('attention') is not None)"


def run_build(environment):
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_build_at_once_and_leave_one_library(tmp_path):
    running = [run_build({"XDG_CACHE_HOME": str(tmp_path)}) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    assert [file.suffix for file in (tmp_path / "flowtron" / "kernels").iterdir()] == [".so"]


def test_a_cache_that_cannot_be_written_becomes_one_private_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = build.cache_folder("models")
    assert folder.is_dir() and folder == build.cache_folder("models") != build.cache_folder()
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder("models") == tmp_path / ".cache/flowtron/models"


def test_without_a_compiler_one_warning_and_no_kernel(tmp_path):
    process = run_build({"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "CXX": ""})
    out, err = process.communicate()
    assert out.strip() == "False" and err.count("No C++ compiler") == 1


def test_broken_compiler_one_warning_and_no_kernel(tmp_path):
    process = run_build({"XDG_CACHE_HOME": str(tmp_path), "CXX": "false"})
    out, err = process.communicate()
    assert out.strip() == "False" and err.count("does not compile") == 1


def test_environment_switches_the_kernels_off():
    out, err = run_build({"FLOWTRON_KERNELS": "0"}).communicate()
    assert out.strip() == "False" and not err
