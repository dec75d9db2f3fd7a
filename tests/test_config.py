"""The config: the original's file, overrides, and what is said of mistakes."""

import json
from pathlib import Path

import pytest

from flowtron.config import Config, apply_overrides, load_config, parse_config
from flowtron.errors import InputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.json"))

# The original's config.json, key by key.
ORIGINAL = {
    "train_config": {
        **{"output_directory": "/outdir", "epochs": 10000000, "optim_algo": "RAdam", "learning_rate": 1e-3},
        **{"weight_decay": 1e-6, "grad_clip_val": 1, "sigma": 1.0, "iters_per_checkpoint": 1000, "batch_size": 6},
        **{"seed": 1234, "checkpoint_path": "", "ignore_layers": [], "finetune_layers": []},
        **{"include_layers": ["speaker", "encoder", "embedding"], "warmstart_checkpoint_path": ""},
        **{"with_tensorboard": True, "fp16_run": True, "gate_loss": True, "use_ctc_loss": True},
        **{"ctc_loss_weight": 0.01, "blank_logprob": -8, "ctc_loss_start_iter": 10000},
    },
    "data_config": {
        "training_files": "filelists/ljs_audiopaths_text_sid_train_filelist.txt",
        "validation_files": "filelists/ljs_audiopaths_text_sid_val_filelist.txt",
        **{"text_cleaners": ["flowtron_cleaners"], "p_arpabet": 0.5, "cmudict_path": "data/cmudict_dictionary"},
        **{"sampling_rate": 22050, "filter_length": 1024, "hop_length": 256, "win_length": 1024},
        **{"mel_fmin": 0.0, "mel_fmax": 8000.0, "max_wav_value": 32768.0, "use_attn_prior": True},
        **{"attn_prior_threshold": 0.0, "prior_cache_path": "/attention_prior_cache", "betab_scaling_factor": 1.0},
        "keep_ambiguous": False,
    },
    "dist_config": {"dist_backend": "nccl", "dist_url": "tcp://localhost:54321"},
    "model_config": {
        **{"n_speakers": 1, "n_speaker_dim": 128, "n_text": 185, "n_text_dim": 512, "n_flows": 2},
        **{"n_mel_channels": 80, "n_attn_channels": 640, "n_hidden": 1024, "n_lstm_layers": 2},
        **{"mel_encoder_n_hidden": 512, "n_components": 0, "mean_scale": 0.0, "fixed_gaussian": True},
        **{"dummy_speaker_embedding": False, "use_gate_layer": True, "use_cumm_attention": False},
    },
}


def write(path, values):
    path.write_text(json.dumps(values))
    return path


def test_the_originals_file_loads_unchanged(tmp_path):
    config = load_config(write(tmp_path / "config.json", ORIGINAL))
    values = config.to_json()
    for section, keys in ORIGINAL.items():
        assert {key: values[section][key] for key in keys} == keys


def test_no_key_is_needed_and_the_model_is_the_originals(tmp_path):
    config = load_config(write(tmp_path / "config.json", {}))
    defaults = config.to_json()["model_config"]
    assert {key: defaults[key] for key in ORIGINAL["model_config"]} == ORIGINAL["model_config"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_that_ship_are_valid(path):
    assert load_config(path).model.n_text == 185


def test_a_config_survives_its_json():
    config = parse_config(ORIGINAL)
    assert parse_config(json.loads(json.dumps(config.to_json()))) == config


OVERRIDES = {
    "train_config.learning_rate=1e-4": ("train", "learning_rate", 1e-4),
    "train_config.sigma=2": ("train", "sigma", 2.0),
    "train_config.flow_start_iters=0,800": ("train", "flow_start_iters", [0, 800]),
    "train_config.ignore_layers=['a', 'b']": ("train", "ignore_layers", ["a", "b"]),
    "train_config.fp16_run=false": ("train", "fp16_run", False),
    "train_config.fp16_run=True": ("train", "fp16_run", True),
    "train_config.include_layers=null": ("train", "include_layers", None),
    "data_config.training_files=a=b.txt": ("data", "training_files", "a=b.txt"),
    "train_config.warmstart_checkpoint_path=": ("train", "warmstart_checkpoint_path", ""),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(override, tmp_path):
    section, key, value = OVERRIDES[override]
    config = load_config(write(tmp_path / "config.json", ORIGINAL), [override])
    assert getattr(getattr(config, section), key) == value


def test_the_last_override_wins():
    values = {"train_config": {"seed": 1}}
    apply_overrides(values, ["train_config.seed=2", "train_config.seed=3", "model_config.n_flows=1"])
    assert values == {"train_config": {"seed": 3}, "model_config": {"n_flows": 1}}


WRONG_OVERRIDES = {
    "train_config.learnin_rate=1": "unknown key 'train_config.learnin_rate'; did you mean 'train_config.learning_rate'",
    "trian_config.seed=1": "no section 'trian_config'; did you mean 'train_config.seed'",
    "train_config.seed": "expected section.key=value",
    "seed=1": "expected section.key=value",
    "train_config.seed=one": "'train_config.seed' is 'one'",
    "train_config.optim_algo=SGD": "'train_config.optim_algo' is 'SGD'.*'RAdam'",
    "data_config.training_files=5": "'data_config.training_files' is 5, but: input should be a valid string",
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_wrong_overrides_are_named(override, tmp_path):
    with pytest.raises(InputError, match=WRONG_OVERRIDES[override]) as error:
        load_config(write(tmp_path / "config.json", ORIGINAL), [override])
    assert "\n" not in str(error.value)


WRONG = {
    "section": ({"models": {}}, "unknown key 'models'; did you mean 'model_config'"),
    "key": ({"model_config": {"n_flow": 2}}, "did you mean 'model_config.n_flows'"),
    "text for a number": ({"model_config": {"n_flows": "2"}}, "'model_config.n_flows' is '2'"),
    "truth for a number": ({"model_config": {"n_flows": True}}, "'model_config.n_flows' is True"),
    "fraction": ({"model_config": {"n_flows": 2.5}}, "'model_config.n_flows' is 2.5"),
    "none": ({"model_config": {"n_flows": 0}}, "greater than or equal to 1"),
    "infinite": ({"train_config": {"learning_rate": float("inf")}}, "finite"),
    "not a number": ({"train_config": {"learning_rate": float("nan")}}, "'train_config.learning_rate' is nan"),
    "long": ({"train_config": {"seed": "x" * 10_000}}, "x{70}"),
    "probability": ({"data_config": {"p_arpabet": 1.5}}, "less than or equal to 1"),
    "odd width": ({"model_config": {"n_text_dim": 7}}, "'model_config.n_text_dim' is 7, but: .*even"),
    "window": ({"data_config": {"win_length": 2048}}, "win_length is 2048"),
    "frequencies": ({"data_config": {"sampling_rate": 8000}}, "half the sampling_rate, 4000"),
    "symbol": ({"model_config": {"symbols": ["a", 3]}}, "'model_config.symbols.1' is 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named(case):
    values, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        parse_config(values, "c.json")
    text = str(error.value)
    assert text.startswith("c.json: ") and "\n" not in text and len(text) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"train_config": 3}', b"[" * 100_000])
def test_files_that_are_no_config_are_refused(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S+config\.json: [^\n]*\.$"):
        load_config(path)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path / "absent.json")
    with pytest.raises(InputError, match="not a JSON file"):
        load_config(tmp_path)


def test_values_stay_valid_when_set_later():
    config = Config()
    config.train.seed = 7
    with pytest.raises(ValueError, match="greater than 0"):
        config.train.learning_rate = -1.0
