"""What a training shows: scalars, pictures and sound in TensorBoard, the terminal line, and the alignment warning."""

import gc
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import tiny_config, write_corpus

from flowtron.audio import AudioSettings
from flowtron.config import Config
from flowtron.errors import InputError
from flowtron.monitor import Monitor, alignment_scalars, alignment_warning, sounds, word_error_rate
from flowtron.train import train


def pictures():
    return [each for each in gc.get_objects() if type(each) is Figure]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A finished run's log, its config, and how many pictures are left when only the run itself collects garbage."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_corpus(folder / "corpus")
    options = {"with_tensorboard": True, "eval_sentences": ["One two."], "eval_wer": False, "max_iters": 20}
    config = tiny_config(corpus, folder / "run", iters_per_checkpoint=10, n_workers=1, **options)
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    earlier = pictures()  # of other tests, kept alive until they are counted, so that none takes another's place
    train(config)
    left = [each for each in pictures() if not any(each is other for other in earlier)]
    gc.enable()
    events = EventAccumulator(str(folder / "run" / "logs"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    events.Reload()
    return events, config, len(left)


def test_pictures_do_not_stay_in_memory(logged):
    assert logged[2] == 0


def test_everything_is_logged(logged):
    events = logged[0]
    tags = events.Tags()
    for name in ("nll", "gate", "ctc", "total", "nats_per_dim", "gradient_norm", "learning_rate", "frames_per_second"):
        assert [event.step for event in events.Scalars(f"training/{name}")] == [10, 20]
    for kind in ("teacher_forced", "free_running"):
        for name in ("diagonality", "coverage", "sharpness", "aligned_share"):
            assert 0 <= events.Scalars(f"{kind}/{name}")[-1].value <= 1
    assert 0 <= events.Scalars("training/padding_share")[0].value < 0.5
    assert {"validation/attention", "validation/gate", "validation/mel", "validation/z"} <= set(tags["images"])
    assert {f"speech/{name}_{k}/attention" for k, name in enumerate("ab")} <= set(tags["images"])
    assert {f"speech/{name}_{k}" for k, name in enumerate("ab")} == set(tags["audio"])
    assert events.Audio("speech/a_0")[0].sample_rate == 22050


def test_nats_per_dimension_are_the_true_likelihood(logged):
    events = logged[0]
    nll, nats = (events.Scalars(f"training/{name}")[0].value for name in ("nll", "nats_per_dim"))
    assert math.isclose(nats - nll, 0.5 * math.log(2 * math.pi), rel_tol=1e-5)


def test_a_resumed_run_leaves_one_curve(logged):
    config = logged[1]
    monitor = Monitor(config, iteration=12)
    monitor.scalars({"training/total": 5.0}, 20)
    monitor.writer.close()
    events = EventAccumulator(config.train.output_directory + "/logs")
    events.Reload()
    assert [event.step for event in events.Scalars("training/total")] == [10, 20]


def test_one_line_tells_progress_speed_and_time_left(tmp_path, capsys, monkeypatch):

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    config = Config()
    config.train.output_directory, config.train.with_tensorboard = str(tmp_path), False
    with Monitor(config) as monitor:
        for k in range(1, 11):
            monitor.step(k, 100, {"nll": torch.tensor(1.0)}, torch.tensor(0.5), 1e-3, 90, 100)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("\r")
    assert "10/100 (10%)" in said and "nll 1.000" in said and "frames/s" in said and "h left" in said


@pytest.mark.parametrize(("max_hours", "told"), [(0.5, "0.50 h left"), (0.0, "frames/s\n")])
def test_the_time_left_is_that_of_the_hours_where_these_end_first(max_hours, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    config = Config()
    config.train.output_directory, config.train.with_tensorboard = str(tmp_path), False
    config.train.max_hours = max_hours
    with Monitor(config) as monitor:
        for k in range(1, 11):
            monitor.step(k, 0, {"nll": torch.tensor(1.0)}, torch.tensor(0.5), 1e-3, 90, 100)
    assert told in capsys.readouterr().err


def aligned(teacher_forced, free_running):
    return {"teacher_forced/aligned_share": teacher_forced, "free_running/aligned_share": free_running}


def test_the_warning_comes_late_and_names_remedies_that_are_not_in_use():
    config = Config()
    assert alignment_warning(aligned(0, 0), 100, config) is None
    assert alignment_warning(aligned(0.9, 0.8), 50000, config) is None
    warning = alignment_warning(aligned(0.1, 0.0), 50000, config)
    assert "10% of the sentences do teacher-forced and 0% free-running" in warning
    assert "model_config.aligner_dim" in warning and "attn_prior_full_iters" in warning and "flow_start" in warning
    assert "use_ctc_loss" not in warning and "input_noise" not in warning
    config.train.use_ctc_loss = False
    assert "use_ctc_loss=true" in alignment_warning(aligned(0.1, 0.0), 50000, config)
    config.model.aligner_dim = 8
    only_free = alignment_warning(aligned(0.9, 0.1), 50000, config)
    assert "input_noise" in only_free and "aligner_dim" not in only_free


def test_alignment_scalars_are_means_over_reports():
    from flowtron.alignment import alignment_report

    diagonal = alignment_report(torch.eye(12).repeat_interleave(4, 0))
    stuck = alignment_report(torch.eye(12)[:1].expand(48, -1))
    scalars = alignment_scalars([diagonal, stuck], "x")
    assert scalars["x/aligned_share"] == 0.5 and 0.5 < scalars["x/coverage"] < 0.6 and scalars["x/sharpness"] == 1


def test_word_error_rate_is_left_out_without_its_extra(monkeypatch):
    def missing(*arguments):
        raise InputError("not there")

    monkeypatch.setattr("flowtron.evaluate.require", missing)
    assert word_error_rate([], [], 22050) is None


def test_word_errors_are_counted_over_all_sentences(monkeypatch):
    import flowtron.evaluate as module

    heard = iter([(1, 4), (2, 2)])

    def listen(text, wav, rate):
        errors, words = next(heard)
        return module.Heard(errors, words, 0, 1, "")

    monkeypatch.setattr(module, "packaged_whisper", lambda: None)
    monkeypatch.setattr(module, "listen", listen)
    assert word_error_rate(["a", "b"], [np.zeros(100)] * 2, 22050) == 50.0


def test_what_overflowed_is_silence(monkeypatch):
    from flowtron.inference import Synthesized

    wav = torch.tensor([[0.5, math.nan, math.inf, -math.inf]])
    monkeypatch.setattr("flowtron.monitor.load_vocoder", lambda name, settings: lambda mel: wav)
    spoken = [("a", 0, Synthesized(torch.zeros(80, 4), *[None] * (len(Synthesized._fields) - 1)))]
    assert sounds(spoken, AudioSettings())[0].tolist() == [0.5, 0.0, 0.0, 0.0]
