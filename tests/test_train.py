"""The training loop: resumption bit for bit, kills, signals, broken batches, schedules, stages, several processes."""

import math
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from training import Run, last_state, run_on, same, scale_as_float16, tiny_config, write_corpus

from flowtron.checkpoint import best_checkpoint, load_model
from flowtron.config import TrainConfig
from flowtron.data import Batch
from flowtron.errors import InputError
from flowtron.model import build_model
from flowtron.objective import Objective
from flowtron.optim import Average, Schedule, build_optimizer, skip_unless
from flowtron.run import LOCK, checkpoints, claimed, mixed_precision, training_states
from flowtron.train import prepare, step, steps, train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The last state of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    run = Run(tiny_config(corpus, folder))
    assert run.finish() == 0, run.error()
    return last_state(folder)


def train_on(config):
    """Start again until the run ends by itself."""
    for _ in range(30):
        run = Run(config)
        if run.finish() == 0:
            return
    raise AssertionError(f"The run does not get to its end: {run.error()}")


def test_a_run_in_parts_ends_with_the_same_bits(corpus, tmp_path, unbroken):
    for until in (3, 8, 12):
        train(tiny_config(corpus, tmp_path, max_iters=until))
    assert same(last_state(tmp_path), unbroken)


def test_death_while_a_checkpoint_is_written_loses_nothing(corpus, tmp_path, unbroken):
    """Again and again at another of the operations that make a part of a checkpoint visible."""
    config = tiny_config(corpus, tmp_path, keep_checkpoints=1)
    for number in (1, 2, 3, 4, 5, 6, 8, 5, 7, 3):
        run = Run(config, dies_at=number)
        code = run.finish()
        assert code in (0, -signal.SIGKILL), run.error()
        for path in checkpoints(tmp_path):
            load_model(path)  # whatever can be seen is whole
    train_on(config)
    assert same(last_state(tmp_path), unbroken)
    assert [path.name for path in training_states(tmp_path)] == ["00000012.pt"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") and path.name != LOCK]


def test_kills_at_random_moments_change_nothing(corpus, tmp_path, unbroken):
    config = tiny_config(corpus, tmp_path, iters_per_checkpoint=2)
    generator = np.random.default_rng(0)
    for _ in range(3):
        run = Run(config)
        time.sleep(generator.uniform(0.3, 1.5))
        run.kill()
        assert run.finish() in (0, -signal.SIGKILL)
    train_on(config)
    final = last_state(tmp_path)
    for key in ("model", "optimizer", "average", "sampler", "iteration"):
        assert same(final[key], unbroken[key])


def test_sigterm_saves_and_the_run_goes_on(corpus, tmp_path):
    endless = {"max_iters": 0, "iters_per_checkpoint": 100000, "with_tensorboard": True}
    run = Run(tiny_config(corpus, tmp_path / "run", **endless))
    while run.process.is_alive() and not (tmp_path / "run" / "logs").exists():
        time.sleep(0.1)
    time.sleep(1)
    run.kill(signal.SIGTERM)
    assert run.finish() == 0
    reached = last_state(tmp_path / "run")["iteration"]
    assert reached > 0
    for folder in ("run", "other"):
        train(
            tiny_config(corpus, tmp_path / folder, **{**endless, "max_iters": reached + 2, "with_tensorboard": False})
        )
    assert same(last_state(tmp_path / "run"), last_state(tmp_path / "other"))


def test_the_last_and_the_best_are_kept(corpus, tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 2.6])

    config = tiny_config(corpus, tmp_path, max_iters=5, iters_per_checkpoint=1, keep_checkpoints=2, use_ctc_loss=False)
    config.train.attn_prior_full_iters = 0
    import flowtron.train as module

    original = module.evaluate
    module.evaluate = lambda *arguments: {"validation/total": next(values)}
    try:
        train(config)
    finally:
        module.evaluate = original
    assert [path.name for path in checkpoints(tmp_path)] == ["00000002", "00000004", "00000005"]
    assert best_checkpoint(tmp_path).name == "00000002"
    assert load_model(best_checkpoint(tmp_path)).metrics == {"validation/total": 1.0}


def test_early_stop_ends_the_run(corpus, tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 2.5, 0.1])
    monkeypatch.setattr("flowtron.train.evaluate", lambda *arguments: {"validation/total": next(values)})
    options = {"max_iters": 9, "iters_per_checkpoint": 1, "early_stop_patience": 2, "attn_prior_full_iters": 0}
    path = train(tiny_config(corpus, tmp_path, **options))
    assert path.name == "00000004"
    # Started again it does not train on.
    assert train(tiny_config(corpus, tmp_path, **options)) == path


def _break(monkeypatch, is_bad):
    """Make the loss of some calls NaN."""
    original, calls = Objective.forward, []

    def forward(self, batch, iteration, shares=None):
        losses = original(self, batch, iteration, shares)
        if self.training:
            calls.append(batch.paths)
            if is_bad(len(calls)):
                return losses._replace(total=losses.total * math.nan)
        return losses

    monkeypatch.setattr(Objective, "forward", forward)
    return calls


@pytest.mark.parametrize("optimizer", ["AdamW", "RAdam"])
def test_a_batch_without_finite_loss_is_named_and_changes_nothing(corpus, tmp_path, monkeypatch, capsys, optimizer):
    calls = _break(monkeypatch, lambda call: call in (2, 4))
    state = prepare(tiny_config(corpus, tmp_path, optim_algo=optimizer))
    for number, batches in zip(range(3), steps(state)):
        before = {k: v.clone() for k, v in state.model.state_dict().items()}
        done = step(state, batches)
        assert bool(done.finite) == (number != 1)
        assert same(before, state.model.state_dict()) == (number == 1)
    assert all(weight.isfinite().all() for weight in state.voice.parameters())
    capsys.readouterr()
    calls.clear()
    path = train(tiny_config(corpus, tmp_path / "run", optim_algo=optimizer, max_iters=4))
    said = capsys.readouterr().err
    assert path.name == "00000004", "a bad last batch does not keep the run from ending"
    for call in (2, 4):
        assert f"iteration {call - 1}: loss or gradient is not finite, skipped: {', '.join(calls[call - 1])}" in said
    assert said.count("skipped") == 2


def test_repeated_bad_batches_stop_the_run_with_its_state_saved(corpus, tmp_path, monkeypatch):
    _break(monkeypatch, lambda call: call > 3)
    with pytest.raises(InputError, match="10 steps in a row"):
        train(tiny_config(corpus, tmp_path, max_iters=100, iters_per_checkpoint=1000))
    assert last_state(tmp_path)["iteration"] == 13
    assert all(weight.isfinite().all() for weight in last_state(tmp_path)["model"].values())


def test_a_step_makes_no_tensor_of_numbers_on_the_device(corpus, tmp_path, monkeypatch):
    """Which on a GPU would wait for all that runs there."""
    config = tiny_config(corpus, tmp_path, accumulate=2, optim_algo="AdamW", gate_positive_weight=2.0)
    state = prepare(config)
    batches = next(steps(state))

    def no_device(make):
        def called(*arguments, **options):
            assert "device" not in options
            return make(*arguments, **options)

        return called

    for name in ("tensor", "as_tensor", "scalar_tensor"):
        monkeypatch.setattr(torch, name, no_device(getattr(torch, name)))
    assert len(batches) == 2 and bool(step(state, batches).finite)


def test_the_scale_of_float16_losses_is_found_and_kept(corpus, tmp_path):
    state = prepare(tiny_config(corpus, tmp_path, optim_algo="AdamW", gate_positive_weight=1e5))
    scaler = scale_as_float16(state)
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    batches = next(steps(state))
    assert [bool(step(state, batches).finite) for _ in range(6)][::5] == [False, True]
    assert scaler.get_scale() < 2.0**127 and not same(before, state.model.state_dict())
    saved = state.state_dict()
    other = torch.amp.GradScaler("cpu")
    state.accelerator.scaler = other
    state.load_state_dict(saved)
    assert other.get_scale() == scaler.get_scale()


def losses_of(config, n_steps):
    state = prepare(config)
    found = []
    for _, batches in zip(range(n_steps), steps(state)):
        done = step(state, batches)
        state.sampler.advance()
        state.iteration += 1
        found.append([float(done.losses[name]) for name in sorted(done.losses)])
    return np.array(found)


@pytest.mark.parametrize("aligner_dim", [0, 8])
def test_accumulated_batches_are_one_large_batch(corpus, tmp_path, aligner_dim):
    """With the noise off, since its numbers fall differently on a large batch."""
    options = {"input_noise": 0.0, "text_dropout": 0.0, "aligner_dim": aligner_dim, "aligner_iters": 3}
    whole = losses_of(tiny_config(corpus, tmp_path, batch_size=8, **options), 6 if not aligner_dim else 3)
    parts = losses_of(tiny_config(corpus, tmp_path, batch_size=2, accumulate=4, **options), len(whole))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def curve(folder):
    """Logged training loss by iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("training/total")}


def test_two_processes_train_as_one_with_the_same_global_batch(corpus, tmp_path):
    """Noise and dropout on: random numbers go with the batch, not with the process that takes it."""
    options = {"global_batches": 2, "max_iters": 20, "iters_per_checkpoint": 20, "with_tensorboard": True}
    options |= {"flow_start_iters": [0, 8], "aligner_dim": 8, "aligner_iters": 4}
    one = tiny_config(corpus, tmp_path / "one", **options)
    run_on(1, one)
    two = tiny_config(corpus, tmp_path / "two", **options)
    run_on(2, two)
    curves = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert list(curves[0]) == list(curves[1]) == [10, 20]
    np.testing.assert_allclose(list(curves[1].values()), list(curves[0].values()), rtol=1e-4)
    weights = last_state(tmp_path / "one")["model"], last_state(tmp_path / "two")["model"]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-3)
    # It goes on with another number of processes, from the same place.
    assert last_state(tmp_path / "one")["sampler"] == last_state(tmp_path / "two")["sampler"]
    two.train.max_iters = 22
    run_on(1, two)
    assert last_state(tmp_path / "two")["iteration"] == 22


def test_a_state_of_another_model_is_refused(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path, max_iters=1))
    with pytest.raises(InputError, match="of another model"):
        train(tiny_config(corpus, tmp_path, max_iters=2, n_hidden=32))


def test_a_state_of_another_optimizer_or_other_mels_is_refused(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path, max_iters=1))
    for change in ({"optim_algo": "RAdam"}, {"mel_mean": -5.0}, {"mel_fmax": 7000.0}):
        with pytest.raises(InputError, match=f"{'f_max' if 'mel_fmax' in change else next(iter(change))}.*start anew"):
            train(tiny_config(corpus, tmp_path, max_iters=2, **change))


def test_settings_of_the_optimizer_are_those_of_the_config_after_a_resumption(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path, max_iters=1, weight_decay=0.5))
    state = prepare(tiny_config(corpus, tmp_path, max_iters=2, weight_decay=0.25))
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.25]


def test_speakers_keep_their_rows_when_the_corpus_gains_one(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path, max_iters=2, n_speakers=3))
    lines = (corpus / "train.txt").read_text()
    (corpus / "more.txt").write_text(lines + "\n0.wav|one.|aa")
    config = tiny_config(corpus, tmp_path, max_iters=4, n_speakers=3, training_files=str(corpus / "more.txt"))
    state = prepare(config)
    assert state.iteration == 2 and state.speakers.names == ["a", "b", "aa"]
    assert load_model(train(config)).speakers == ["a", "b", "aa"]


def test_steps_survive_a_validation_that_fails(corpus, tmp_path, monkeypatch, unbroken):
    def failing(*arguments):
        raise RuntimeError("no")

    config = tiny_config(corpus, tmp_path)
    with monkeypatch.context() as context:
        context.setattr("flowtron.train.evaluate", failing)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no"):
                train(config)
            assert last_state(tmp_path)["iteration"] == 4 and not checkpoints(tmp_path)
    train(config)
    assert [path.name for path in checkpoints(tmp_path)] == ["00000004", "00000008", "00000012"]
    assert same(last_state(tmp_path), unbroken)


def test_sentences_that_cannot_be_spoken_are_refused_at_the_start(corpus, tmp_path):
    for sentence in ("", "你好"):
        with pytest.raises(InputError, match="has nothing to say"):
            prepare(tiny_config(corpus, tmp_path, eval_sentences=[sentence]))
    prepare(tiny_config(corpus, tmp_path, eval_sentences=["Hello there."]))


def test_a_recording_that_is_broken_costs_no_steps(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, tmp_path / "run", max_iters=50, iters_per_checkpoint=1000, feature_cache_path="")
    state = prepare(config)
    paths = [path for _, batches in zip(range(4), steps(state)) for batch in batches for path in batch.paths]
    soundfile.write(paths[-1], np.full(4000, np.nan, dtype=np.float32), 22050, subtype="FLOAT")
    with pytest.raises(InputError, match=r"finite|NaN"):
        train(config)
    assert last_state(tmp_path / "run")["iteration"] > 0


def test_what_is_not_ours_stays_in_the_output_directory(corpus, tmp_path):
    for name in (".env", "project/.git/config", "project/.env", "checkpoints/.mine/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    for name in ("checkpoints/.00000001.x.new/file", "training/.00000001.pt.y", ".best.z"):  # by a kill
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left by a kill")
    train(tiny_config(corpus, tmp_path, max_iters=1))
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    kept = {name for name in names if not name.startswith(("checkpoints/00000001/", "training/00000001.pt"))}
    assert kept == {".env", "project/.git/config", "project/.env", "checkpoints/.mine/file", "best", LOCK}


def test_two_runs_in_one_folder_are_refused(corpus, tmp_path):
    with claimed(tmp_path), pytest.raises(InputError, match="another training is running"):
        train(tiny_config(corpus, tmp_path, max_iters=1))
    train(tiny_config(corpus, tmp_path, max_iters=1))


def test_a_stage_without_a_trained_weight_is_refused_by_name(corpus, tmp_path):
    config = tiny_config(corpus, tmp_path, aligner_dim=8, aligner_iters=3, finetune_layers=["*gate*"])
    with pytest.raises(InputError, match=r"iteration 0: train_config.finetune_layers .* \(aligner_iters=0"):
        train(config)
    config = tiny_config(corpus, tmp_path, aligner_dim=8, aligner_iters=3, finetune_layers=["aligner.*"])
    with pytest.raises(InputError, match="iteration 3"):
        train(config)
    assert last_state(tmp_path)["iteration"] == 3


def test_several_processes_agree_to_stop_within_seconds(corpus, tmp_path, monkeypatch):
    """However long a step takes; with quick ones they do not ask every time."""
    state = prepare(tiny_config(corpus, tmp_path))
    now, asked = [0.0], []
    monkeypatch.setattr(type(state.accelerator), "num_processes", 2)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(state, "sum_over_processes", lambda values: asked.append(state.iteration) or 2 * values)
    for seconds, at_most in ((4.0, 1), (0.01, 10)):
        asked.clear()
        for _ in range(40):
            state.iteration += 1
            now[0] += seconds
            assert not state.should_stop(False)
        assert max(np.diff(asked)[2:]) == at_most
    assert any(state.should_stop(True) for state.iteration in range(state.iteration + 1, state.iteration + 11))


def test_checkpoint_path_takes_up_the_state_of_another_run(corpus, tmp_path):
    train(tiny_config(corpus, tmp_path / "first", max_iters=2))
    state = prepare(
        tiny_config(corpus, tmp_path / "second", checkpoint_path=str(tmp_path / "first/training/00000002.pt"))
    )
    assert state.iteration == 2 and not training_states(tmp_path / "second")


def test_steps_of_flow_join_one_after_the_other_in_one_run(corpus, tmp_path):
    config = tiny_config(corpus, tmp_path, flow_start_iters=[4, 8], aligner_dim=8, aligner_iters=4, max_iters=10)
    state = prepare(config)
    moved = []
    for _, batches in zip(range(10), steps(state)):
        before = {k: v.clone() for k, v in state.model.named_parameters()}
        done = step(state, batches)
        moved.append(
            {k.split(".")[0] + k[5:8] for k, v in state.model.named_parameters() if not torch.equal(v, before[k])}
        )
        state.iteration += 1
        assert ("aligner" in done.losses) == (state.iteration <= 4)
    kinds = [sorted({name for name in step_ if name.startswith(("flows", "aligner"))}) for step_ in moved]
    assert all(all(name.startswith("aligner") for name in kind) for kind in kinds[:4])
    assert all(kind == ["flows.0."] for kind in kinds[4:8])
    assert all(kind == ["flows.0.", "flows.1."] for kind in kinds[8:])


def one_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(3, 8, 20, generator=generator)
    tokens = torch.randint(1, 185, (3, 6), generator=generator)
    return Batch(
        tokens, torch.tensor([6, 5, 4]), mel, torch.tensor([20, 18, 15]), torch.zeros(3).long(), None, ["x"] * 3
    )


def test_prior_and_ctc_fade_out_by_schedule(corpus, tmp_path):
    config = tiny_config(corpus, tmp_path, attn_prior_full_iters=10, attn_prior_fade_iters=10, ctc_loss_start_iter=5)
    torch.manual_seed(0)
    model = build_model(config.model)
    objective = Objective(model, config.train).eval()
    assert [objective.guidance(k) for k in (0, 10, 15, 20, 99)] == [1, 1, 0.5, 0, 0]
    weight = config.train.ctc_loss_weight
    assert [objective.ctc_weight(k) for k in (0, 5, 10, 15, 20)] == [0, weight, weight, weight / 2, 0]
    batch = one_batch()
    attention = [objective(batch, k).output.steps[0].attention for k in (0, 15, 20)]
    without = Objective(model, config.train, use_prior=False).eval()(batch, 0).output.steps[0].attention
    torch.testing.assert_close(attention[2], without)
    distances = [float((a - without).abs().mean()) for a in attention]
    assert distances[0] > distances[1] > distances[2]
    early, late = objective(batch, 0), objective(batch, 7)
    torch.testing.assert_close(late.total - early.total, weight * late.named["ctc"])


def test_prior_and_ctc_are_on_by_default_and_annealed():
    default = TrainConfig()
    assert default.use_ctc_loss and default.attn_prior_full_iters > 0 and default.attn_prior_fade_iters > 0


def schedule(**options):
    config = TrainConfig(**options)
    return Schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), config)


def test_learning_rates():
    constant = schedule(learning_rate=0.1, lr_warmup_iters=4)
    assert [round(constant.apply(k), 3) for k in (0, 1, 3, 4, 900)] == [0.025, 0.05, 0.1, 0.1, 0.1]
    assert constant.optimizer.param_groups[0]["lr"] == 0.1
    cosine = schedule(learning_rate=1.0, lr_schedule="cosine", max_iters=100, lr_final_ratio=0.1)
    assert [round(cosine.rate(k), 3) for k in (0, 50, 100, 200)] == [1.0, 0.55, 0.1, 0.1]
    with pytest.raises(InputError, match="max_iters"):
        schedule(learning_rate=1.0, lr_schedule="cosine")
    plateau = schedule(learning_rate=1.0, lr_schedule="plateau", lr_patience=2, lr_final_ratio=0.25)
    rates = []
    for loss in (1.0, 1.1, 1.2, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        plateau.validated(loss)
        rates.append(plateau.rate(0))
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]
    again = schedule(learning_rate=1.0, lr_schedule="plateau", lr_patience=2, lr_final_ratio=0.25)
    again.load_state_dict(plateau.state_dict())
    assert again.rate(0) == 0.25 and again.best == 0.9


def test_averaged_weights_follow_their_equation():
    model, yes, no = torch.nn.Linear(2, 2), torch.tensor(True), torch.tensor(False)
    average = Average(model, 0.9)
    torch.nn.init.constant_(model.weight, 3.0)
    average.update(model, no)  # a step that was left out does not count as the first either
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model, yes)
    assert torch.equal(average.module.weight, model.weight)
    torch.nn.init.constant_(model.weight, 2.0)
    average.update(model, yes)
    average.update(model, no)
    torch.testing.assert_close(average.module.weight, torch.full((2, 2), 1.1))
    other = Average(model, 0.9)
    other.load_state_dict(average.state_dict())
    assert other.n_updates == 2 and torch.equal(other.module.weight, average.module.weight)


@pytest.mark.parametrize("name", ["RAdam", "AdamW", "Adam"])
def test_a_step_is_left_out_by_a_flag(name):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], TrainConfig(optim_algo=name, weight_decay=0.1))
    for finite in (True, False, True):
        parameter.grad = torch.ones(3) if finite else torch.full((3,), math.nan)
        before, state = parameter.detach().clone(), {k: v.clone() for k, v in optimizer.state[parameter].items()}
        if skip_unless(optimizer, torch.tensor(finite)):
            optimizer.step()
        assert torch.equal(before, parameter) != finite
        if not finite:
            assert same(state, dict(optimizer.state[parameter]))


def test_radam_is_left_out_by_a_flag_as_on_a_gpu():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], TrainConfig(weight_decay=0.1))
    for number in range(12):
        finite = number not in (2, 9)
        parameter.grad = torch.ones(3) if finite else torch.full((3,), math.nan)
        before = parameter.detach().clone()
        optimizer.found_inf = torch.tensor(0.0 if finite else 1.0)
        optimizer.step()
        assert torch.equal(before, parameter) != finite and bool(parameter.isfinite().all())


def test_precision_by_name():
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # torch 2.4 has no such question
    assert mixed_precision(TrainConfig()) == "no"
    assert mixed_precision(TrainConfig(fp16_run=True)) == ("bf16" if fast else "no")
    assert mixed_precision(TrainConfig(fp16_run=True, precision="float32")) == "no"
    assert mixed_precision(TrainConfig(precision="bfloat16")) == "bf16"
    with pytest.raises(InputError, match="float16"):
        mixed_precision(TrainConfig(precision="float16"))


def test_bfloat16_trains_with_determinant_softmax_and_ctc_in_float32(corpus, tmp_path):
    wide = losses_of(tiny_config(corpus, tmp_path / "wide"), 10)
    config = tiny_config(corpus, tmp_path / "half", precision="bfloat16")
    np.testing.assert_allclose(losses_of(config, 10), wide, rtol=0.02, atol=0.02)
    state = prepare(config)
    batches = next(steps(state))
    with state.accelerator.autocast():
        losses = state.model and Objective(state.model, config.train)(batches[0], 0)
    aux = losses.output.steps[0]
    kinds = {t.dtype for t in (losses.total, losses.output.log_det, aux.log_scale, aux.attention, losses.named["ctc"])}
    assert kinds == {torch.float32}
    # Rounded to bfloat16 they would have no digits beyond its eight bits.
    assert not torch.equal(aux.log_scale, aux.log_scale.bfloat16().float()) or not aux.log_scale.any()


def test_blurred_spans_lose_harmonics_and_keep_the_envelope():
    from flowtron.objective import BLUR_SPAN_FRAMES, blur_spans

    torch.manual_seed(0)
    channel = torch.arange(80.0)
    envelope = (channel / 20).cos()
    frames = (envelope + (channel * math.pi).cos()).expand(4, 20 * BLUR_SPAN_FRAMES + 3, 80)
    assert torch.equal(blur_spans(frames, 0.0), frames)
    residue = (blur_spans(frames, 0.5) - envelope)[..., 8:-8].abs().mean(2)
    spans = residue[:, :-3].unflatten(1, (-1, BLUR_SPAN_FRAMES))
    assert float((spans.amax(2) - spans.amin(2)).max()) < 1e-5, "a span is blurred as a whole"
    changed = spans[..., 0] < 0.99
    assert 0.35 < float(changed.float().mean()) < 0.65
    # Harmonics two channels apart vanish as far as a span is blurred, evenly from not at all to wholly.
    assert float(spans[..., 0][changed].mean()) == pytest.approx(0.5, abs=0.12)


def test_only_the_step_beside_the_mel_sees_blurred_frames(corpus, tmp_path):
    state = prepare(tiny_config(corpus, tmp_path, input_blur=1.0, input_noise=0.0))
    objective = Objective(state.voice, state.config.train)
    frames = torch.randn(2, 50, 80)
    assert torch.equal(objective._corrupt(frames, 1), frames)
    assert not torch.equal(objective._corrupt(frames, 0), frames)
