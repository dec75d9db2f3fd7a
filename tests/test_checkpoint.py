"""The checkpoint format: describes itself, is written in one go, and is refused when anything in it is off."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch

from flowtron.audio import AudioSettings
from flowtron.checkpoint import (
    info,
    load_model,
    load_training_state,
    load_weights,
    read_vocoder,
    save_model,
    save_training_state,
    save_vocoder,
)
from flowtron.config import Config, ModelConfig
from flowtron.errors import InputError
from flowtron.model import build_model
from flowtron.tensorfile import check_tensor_file
from flowtron.text import SYMBOLS

SMALL = {"n_text_dim": 8, "n_hidden": 8, "n_attn_channels": 8, "n_speakers": 2, "n_speaker_dim": 4, "n_flows": 2}
VARIANTS = {
    "plain": {},
    "aligner": {"aligner_dim": 4},
    "location": {"use_cumm_attention": True},
    "fixed mixture": {"n_components": 3, "mean_scale": 2.0, "mel_encoder_n_hidden": 8},
    "learned mixture": {"n_components": 3, "fixed_gaussian": False, "mel_encoder_n_hidden": 8},
}


def small_config(**model):
    return Config(model_config=ModelConfig(**SMALL, **model))


def save(folder, config=None, **options):
    config = config or small_config()
    torch.manual_seed(0)
    model = build_model(config.model)
    arguments = {"symbols": SYMBOLS, "speakers": ["ann", "böb"], "step": 7, "metrics": {"validation/total": 0.25}}
    save_model(folder, model, config, **{**arguments, **options})
    return model


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "voice")
    return tmp_path / "voice"


@pytest.mark.parametrize("variant", VARIANTS)
def test_loading_needs_the_path_only_and_gives_back_everything(variant, tmp_path):
    config = small_config(**VARIANTS[variant])
    config.data.sampling_rate = 24000
    model = save(tmp_path / "voice", config, notes=["a note"])
    (tmp_path / "voice").rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")
    assert loaded.config == config and loaded.config.audio_settings().sample_rate == 24000
    assert loaded.symbols == list(SYMBOLS) and loaded.speakers == ["ann", "böb"]
    assert (loaded.step, loaded.metrics, loaded.notes) == (7, {"validation/total": 0.25}, ["a note"])
    state, original = loaded.model.state_dict(), model.state_dict()
    assert state.keys() == original.keys() and all(torch.equal(state[name], original[name]) for name in state)
    assert not loaded.model.training and all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert load_weights(tmp_path / "moved").keys() == state.keys()


def test_a_loaded_model_computes_what_the_saved_one_did_and_can_be_trained(saved):
    torch.manual_seed(0)
    model, loaded = build_model(small_config().model).eval(), load_model(saved).model
    with torch.no_grad():
        for each in (model, loaded):
            each.flows[0].conditioner.output.bias.fill_(0.1)
    arguments = {
        "mel": torch.randn(1, 80, 6),
        "mel_lengths": torch.tensor([6]),
        "tokens": torch.arange(4)[None],
        "token_lengths": torch.tensor([4]),
        "speaker_id": torch.tensor([1]),
    }
    z = loaded(**arguments).z
    torch.testing.assert_close(z, model(**arguments).z, atol=0, rtol=0)
    z.sum().backward()
    assert loaded.flows[0].conditioner.output.bias.grad is not None


def test_the_description_is_plain_json_that_others_can_read(saved):
    description = json.loads((saved / "model.json").read_text())
    assert description["format_version"] == 1 and description["kind"] == "flowtron"
    assert description["audio"]["hop_length"] == 256 and description["cleaners"] == ["flowtron_cleaners"]
    assert description["config"]["model_config"]["n_hidden"] == 8 and description["dtype"] == "float32"
    assert description["weights"]["bytes"] == (saved / "model.safetensors").stat().st_size
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_single(saved, tmp_path):
    model = save(tmp_path / "half", dtype=torch.float16)
    full, half = ((folder / "model.safetensors").stat().st_size for folder in (saved, tmp_path / "half"))
    assert half < 0.65 * full
    state, original = load_model(tmp_path / "half").model.state_dict(), model.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(torch.equal(state[name], original[name].half().float()) for name in state)
    with torch.no_grad():
        model.flows[0].conditioner.output.bias[3] = 1e6
    with pytest.raises(InputError, match=r"output\.bias' is beyond the range of torch\.float16"):
        save_model(tmp_path / "big", model, small_config(), symbols=[], speakers=[], dtype=torch.float16)
    assert not (tmp_path / "big").exists()


def test_metrics_that_are_not_finite_become_null(tmp_path):
    save(tmp_path / "voice", metrics={"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert load_model(tmp_path / "voice").metrics == {"a": None, "b": None, "c": 1.0}


def test_a_checkpoint_is_replaced_whole_or_not_at_all(saved, monkeypatch):
    save(saved, step=8)
    assert load_model(saved).step == 8

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(InputError, match="No space left"):
        save(saved, step=9)
    assert load_model(saved).step == 8
    with pytest.raises(InputError, match="No space left"):
        save_training_state(saved.parent / "state.pt", {"iteration": 1, "model": {}})
    assert [path.name for path in saved.parent.iterdir()] == ["voice"]


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(InputError, match="exists and is not a checkpoint"):
            save(tmp_path / name)
    assert (tmp_path / "photos" / "one.jpg").exists()
    with pytest.raises(InputError, match="cannot be written"):
        save(tmp_path / "file" / "inside")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    assert load_model(tmp_path / "empty").step == 7


def edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


EDITS = {
    "newer version": (lambda d: d.update(format_version=2), "newer than 1.*update flowtron"),
    "older version": (lambda d: d.update(format_version=0), "format_version is 0.*convert the model again"),
    "no version": (lambda d: d.pop("format_version"), "format_version is None"),
    "version of text": (lambda d: d.update(format_version="1"), "format_version is '1'"),
    "another kind": (lambda d: d.update(kind="wavenet"), "kind is 'wavenet'"),
    "no config": (lambda d: d.pop("config"), "'config' is no dict"),
    "unknown key": (lambda d: d["config"]["model_config"].update(n_hiden=8), "did you mean 'model_config.n_hidden'"),
    "another width": (lambda d: d["config"]["model_config"].update(n_hidden=16), r"has shape \(.*expected"),
    "endless width": (lambda d: d["config"]["model_config"].update(n_hidden=10**30), "no model has such sizes"),
    "endless flows": (lambda d: d["config"]["model_config"].update(n_flows=10**9), "too few"),
    "one flow more": (lambda d: d["config"]["model_config"].update(n_flows=3), "is (missing|not of the model)"),
    "one flow fewer": (lambda d: d["config"]["model_config"].update(n_flows=1), "is (missing|not of the model)"),
    "width of terabytes": (lambda d: d["config"]["model_config"].update(n_hidden=10**6), r"has shape \(.*expected"),
    "symbols missing": (lambda d: d["symbols"].pop(), "184 symbols for 185 rows"),
    "symbols of numbers": (lambda d: d["symbols"].append(3), "'symbols' holds other things than text"),
    "speakers of text": (lambda d: d.update(speakers="ann"), "'speakers' is no list"),
    "another hash": (lambda d: d["weights"].update(sha256="0" * 64), "hash is not the one noted"),
    "no hash": (lambda d: d["weights"].clear(), "hash is not the one noted"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_description_is_refused(case, saved):
    change, message = EDITS[case]
    edit(saved, change)
    with pytest.raises(InputError, match=message) as error:
        load_model(saved)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(saved))


def test_damaged_descriptions_are_refused(saved):
    whole = (saved / "model.json").read_bytes()
    for content in (b"", b"[]", b"\xff\xfe", b"[" * 100_000, whole[: len(whole) // 2]):
        (saved / "model.json").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.json: .*get the file anew\.$"):
            load_model(saved)


def test_what_is_no_checkpoint_is_named(saved, tmp_path):
    with pytest.raises(InputError, match="no such model description"):
        load_model(tmp_path / "absent")
    with pytest.raises(InputError, match=r"a file, not a checkpoint folder.*flowtron convert"):
        load_model(saved / "model.safetensors")
    save_vocoder(tmp_path / "vocoder", "waveglow", {}, {"a": torch.zeros(1)}, AudioSettings())
    with pytest.raises(InputError, match="a vocoder, not a voice"):
        load_model(tmp_path / "vocoder")


def test_truncated_weights_are_refused_at_every_kilobyte(saved):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for size in range(0, len(content), 1024):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"truncated.*\.$"):
            load_model(saved)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_model(saved)


def test_altered_weights_are_refused(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="was altered"):
        load_model(saved)


def tensor_file(path, header, content=b"\0" * 8, declared=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if declared is None else declared) + text + content)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


HEADERS = {
    "no json": b"{",
    "no object": b"[]",
    "deep json": b"[" * 100_000,
    "unknown type": entry("Q7"),
    "wrong size": entry(shape=(3,)),
    "huge shape": entry(shape=(1 << 40, 1 << 40)),
    "negative shape": entry(shape=(-1, -2)),
    "offsets beyond the file": entry(shape=(4,), offsets=(0, 16)),
    "offsets backwards": entry(offsets=(8, 0)),
    "hole": entry(shape=(1,), offsets=(4, 8)),
    "overlap": {**entry(), "b": entry()["a"]},
    "rest": entry(shape=(1,), offsets=(0, 4)),
    "text for a number": {"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "entry of text": {"a": "b"},
    "type that cannot be looked up": {"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}},
}


@pytest.mark.parametrize("case", HEADERS)
def test_tensor_files_with_wrong_headers_are_refused(case, tmp_path):
    path = tensor_file(tmp_path / "x.safetensors", HEADERS[case])
    with pytest.raises(InputError, match=r"truncated, altered or no safetensors file; get it anew\.$"):
        check_tensor_file(path)


@pytest.mark.parametrize("declared", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_tensor_files_with_wrong_header_sizes_are_refused(declared, tmp_path):
    path = tensor_file(tmp_path / "x.safetensors", entry(), declared=declared)
    with pytest.raises(InputError, match="do not hold a header"):
        check_tensor_file(path)


def test_a_right_tensor_file_is_described(tmp_path):
    path = tensor_file(tmp_path / "x.safetensors", {**entry(), "__metadata__": {"x": "y"}})
    assert check_tensor_file(path) == {"a": (torch.float32, (2,))}


def test_training_states_come_back_and_hold_no_code(tmp_path):
    state = {
        "iteration": 5,
        "model": {"w": torch.randn(3)},
        "average": None,
        "random": {"torch": torch.get_rng_state()},
        "schedule": {"best": float("inf"), "stale": 0},
    }
    path = tmp_path / "state.pt"
    save_training_state(path, state)
    back = load_training_state(path)
    assert back["iteration"] == 5 and back["schedule"] == state["schedule"] and back["average"] is None
    assert torch.equal(back["model"]["w"], state["model"]["w"])
    assert torch.equal(back["random"]["torch"], state["random"]["torch"])
    assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()
    content = path.read_bytes()
    for size in range(0, len(content), 512):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            load_training_state(path)
    with pytest.raises(InputError, match="no such file"):
        load_training_state(tmp_path / "absent.pt")
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a training state"):
        load_training_state(path)
    with pytest.raises(InputError, match="cannot be written"):
        save_training_state(tmp_path / "absent" / "state.pt", state)


def _mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_vocoders_come_back_bit_for_bit(tmp_path):
    state = {"w": torch.randn(3, 2), "half": torch.randn(4).half(), "count": torch.tensor(3)}
    audio = AudioSettings(sample_rate=16000, n_mels=40)
    save_vocoder(tmp_path / "v", "waveglow", {"n_flows": 4}, state, audio, step=3, notes=["n"])
    back = read_vocoder(tmp_path / "v")
    assert (back.kind, back.architecture, back.audio, back.step, back.notes) == (
        "waveglow",
        {"n_flows": 4},
        audio,
        3,
        ["n"],
    )
    assert all(torch.equal(back.state[k], v) and back.state[k].dtype == v.dtype for k, v in state.items())
    description = json.loads((tmp_path / "v" / "vocoder.json").read_text())
    for key, value in {"format_version": 9, "audio": {"pitch": 3}, "architecture": None}.items():
        (tmp_path / "v" / "vocoder.json").write_text(json.dumps({**description, key: value}))
        with pytest.raises(InputError, match=r"vocoder\.json"):
            read_vocoder(tmp_path / "v")
    with pytest.raises(InputError, match="no such vocoder description"):
        read_vocoder(tmp_path / "absent")


def test_info_says_what_a_checkpoint_is(saved):
    shown = info(saved)
    for part in ("float32", "n_hidden 8", "2: ann, böb", "185: ", "sample_rate 22050", "step", "7", "validation/total"):
        assert part in shown
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError):
        info(saved)


def test_a_copied_folder_is_the_same_checkpoint(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert load_model(str(tmp_path / "copy")).speakers == load_model(Path(saved)).speakers
