"""Warm start: what is taken, skipped, re-initialised and frozen, and the table that says so."""

import json
from pathlib import Path

import pytest
import torch
from training import tiny_config, write_corpus

from flowtron.checkpoint import save_model
from flowtron.config import load_config
from flowtron.errors import InputError
from flowtron.model import build_model
from flowtron.train import prepare, step, steps
from flowtron.warmstart import freeze_all_but, matches, warm_start

SYMBOLS = [chr(0x100 + k) for k in range(185)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def model_of(corpus, seed=0, **options):
    config = tiny_config(corpus, corpus / "run", **options)
    torch.manual_seed(seed)
    return build_model(config.model), config


@pytest.fixture(scope="module")
def one_step(corpus):
    """A checkpoint with one step of flow and the speakers b and d."""
    model, config = model_of(corpus, seed=1, n_flows=1, aligner_dim=8)
    torch.nn.init.normal_(model.flows[0].conditioner.output.weight)
    return str(save_model(corpus / "one", model, config, symbols=SYMBOLS, speakers=["b", "d"])), model


def rows_of(table):
    return dict(line.split(maxsplit=1) for line in table.splitlines()[1:])


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("flows.0.conditioner.gate.bias", "gate", True),
        ("flows.0.conditioner.gate.bias", "flows.*.gate.*", True),
        ("flows.0.conditioner.gate.bias", "gate.*", False),
        ("speaker_embedding.weight", "speaker_embedding", True),
    ],
)
def test_patterns_are_globs_or_parts_of_names(name, pattern, fits):
    assert matches(name, [pattern]) == fits


def test_a_second_step_of_flow_starts_as_the_identity(corpus, one_step):
    path, old = one_step
    model, _ = model_of(corpus, n_flows=2, aligner_dim=8)
    rows = rows_of(warm_start(model, path, None, [], ["b", "d"], SYMBOLS))
    taken = old.flows[0].conditioner.state_dict()
    for name, weight in model.flows[0].conditioner.state_dict().items():
        assert torch.equal(weight, taken[name])
    assert not model.flows[1].conditioner.output.weight.any()
    assert rows["flows.0.conditioner.output.weight"] == "loaded"
    assert rows["flows.0.conditioner.gate.weight"] == "skipped: not in this model"
    assert rows["flows.1.flow.conditioner.gate.weight"] == "re-initialised: not in the checkpoint"
    batch = (
        torch.randn(2, 8, 9),
        torch.tensor([9, 7]),
        torch.ones(2, 4).long(),
        torch.tensor([4, 3]),
        torch.zeros(2).long(),
    )
    torch.testing.assert_close(model.eval()(*batch).z, old.eval()(*batch).z)


def test_speakers_keep_their_voices_whatever_their_rows(corpus, one_step):
    path, old = one_step
    model, _ = model_of(corpus, n_flows=1, aligner_dim=8, n_speakers=4)
    rows = rows_of(warm_start(model, path, None, [], ["a", "b", "c", "d"], SYMBOLS))
    for table, before in (
        (model.speaker_embedding, old.speaker_embedding),
        (model.aligner.speaker_embedding, old.aligner.speaker_embedding),
    ):
        assert torch.equal(table.weight[[1, 3]], before.weight)
        assert torch.equal(table.weight[0], before.weight.mean(0)) and torch.equal(table.weight[0], table.weight[2])
    assert rows["speaker_embedding.weight"] == "loaded: 2 of 4 rows by name, 2 at the mean of the old"


@pytest.mark.parametrize("speakers", [["b", "d"], []])
def test_a_new_speaker_is_added_to_the_old_ones(corpus, tmp_path, one_step, speakers):
    """A filelist of the new one alone: the old ones keep their rows, whether they have names or not."""
    _, old = one_step
    _, config = model_of(corpus, n_flows=1, aligner_dim=8)
    path = save_model(tmp_path / "old", old, config, symbols=SYMBOLS, speakers=speakers)
    (corpus / "zoe.txt").write_text("0.wav|one.|a\n1.wav|two.|a")
    files = {"training_files": str(corpus / "zoe.txt"), "validation_files": str(corpus / "zoe.txt")}
    # As a run's folder, whose best checkpoint is taken.
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path.rename(tmp_path / "run" / "checkpoints" / "00000007")
    (tmp_path / "run" / "best").write_text("00000007")
    common = {"n_flows": 1, "aligner_dim": 8, "warmstart_checkpoint_path": str(tmp_path / "run"), **files}
    state = prepare(tiny_config(corpus, tmp_path / "grown", n_speakers=3, **common))
    assert state.speakers.names == [*(speakers or ["row 0", "row 1"]), "a"]
    rows = state.model.speaker_embedding.weight
    assert torch.equal(rows[:2], old.speaker_embedding.weight)
    assert torch.equal(rows[2], old.speaker_embedding.weight.mean(0))
    # Without room for them only the new one is there.
    state = prepare(tiny_config(corpus, tmp_path / "alone", n_speakers=1, **common))
    assert state.speakers.names == ["a"]


def test_weights_that_would_stay_random_are_refused(corpus, tmp_path, one_step):
    options = {"n_flows": 1, "aligner_dim": 8, "n_hidden": 24, "finetune_layers": ["*speaker_embedding.weight"]}
    with pytest.raises(InputError, match=r"it has no 'flows\.0\..*would leave that random"):
        prepare(tiny_config(corpus, tmp_path, warmstart_checkpoint_path=one_step[0], **options))


def test_other_mels_are_told(corpus, tmp_path, one_step):
    options = {"n_flows": 1, "aligner_dim": 8, "mel_mean": -5.0}
    with pytest.warns(UserWarning, match=r"its mels are others, mel_mean is -5\.0 here and 0\.0 there"):
        prepare(tiny_config(corpus, tmp_path, warmstart_checkpoint_path=one_step[0], **options))


def test_patterns_must_take_something(corpus, one_step):
    model, _ = model_of(corpus, n_flows=2, aligner_dim=8)
    with pytest.raises(InputError, match=r"'flows\.1\.\*' fits no weight that both the model and the checkpoint have"):
        warm_start(model, one_step[0], ["text_encoder", "flows.1.*"], [])


def test_symbols_go_by_name_too(corpus, one_step):
    path, old = one_step
    model, _ = model_of(corpus, n_flows=1, aligner_dim=8)
    warm_start(model, path, None, [], ["b", "d"], SYMBOLS[::-1])
    assert torch.equal(model.text_encoder.embedding.weight.flip(0), old.text_encoder.embedding.weight)


def test_include_and_ignore(corpus, one_step):
    path, old = one_step
    model, _ = model_of(corpus, n_flows=1, aligner_dim=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = rows_of(warm_start(model, path, ["speaker", "text_encoder.*"], ["*.lstm.*"]))
    for name, weight in model.state_dict().items():
        is_taken = ("speaker" in name or name.startswith("text_encoder.")) and ".lstm." not in name
        assert (rows[name] == "loaded") == is_taken
        assert torch.equal(weight, (old.state_dict() if is_taken else before)[name])


@pytest.mark.parametrize("key", ["include_layers", "ignore_layers", "finetune_layers"])
def test_a_pattern_that_fits_nothing_is_an_error(corpus, one_step, key):
    model, _ = model_of(corpus, n_flows=1, aligner_dim=8)
    with pytest.raises(InputError, match=rf"{key}: 'encodre\.\*' fits no weight"):
        if key == "finetune_layers":
            freeze_all_but(model, ["encodre.*"])
        else:
            warm_start(model, one_step[0], *([["encodre.*"], []] if key == "include_layers" else [None, ["encodre.*"]]))


def test_the_few_shot_preset_trains_speaker_embeddings_alone(corpus, tmp_path, one_step, capsys):
    preset = json.loads((Path(__file__).parent.parent / "configs" / "few_shot.json").read_text())
    options = {key: preset["train_config"][key] for key in ("finetune_layers", "include_layers", "ignore_layers")}
    options |= {"n_flows": 1, "warmstart_checkpoint_path": one_step[0], "aligner_dim": 8, "n_speakers": 3}
    config = tiny_config(corpus, tmp_path, **options)
    state = prepare(config)
    said = capsys.readouterr().out
    assert "warm start from" in said and "frozen" in said and "trained" in said
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    for _, batches in zip(range(2), steps(state)):
        assert bool(step(state, batches).finite)
    moved = {name for name, weight in state.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert "speaker_embedding.weight" in moved and all("speaker_embedding" in name for name in moved)


def test_the_presets_are_valid_configs():
    for path in (Path(__file__).parent.parent / "configs").glob("*.json"):
        load_config(path)
