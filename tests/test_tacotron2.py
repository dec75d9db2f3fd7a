"""Tacotron 2: its attention and decoder against formulations of their own, padding, training, loading, speaking."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import SPEAKERS
from torch import nn
from training import last_state, tiny_config, write_corpus

from flowtron.checkpoint import load_model, load_weights, save_model
from flowtron.cli import main
from flowtron.config import Config, ModelConfig, parse_config
from flowtron.convert import convert
from flowtron.errors import InputError
from flowtron.inference import SamplingOptions, Utterance, synthesize_mels
from flowtron.loss import frame_errors
from flowtron.model import Tacotron2, build_any, build_model
from flowtron.model.tacotron2 import LocationSensitiveAttention, MaskedBatchNorm, Prenet
from flowtron.style import prior_source
from flowtron.synthesizer import Synthesizer
from flowtron.text import SYMBOLS
from flowtron.text.symbols import TACOTRON2_SYMBOLS
from flowtron.train import train
from flowtron.warmstart import warm_start

SMALL = {
    "kind": "tacotron2",
    "n_text_dim": 8,
    "n_hidden": 12,
    "n_attn_channels": 6,
    "n_speakers": 2,
    "n_speaker_dim": 4,
    "n_mel_channels": 5,
    "prenet_dim": 7,
    "postnet_dim": 9,
    "n_location_filters": 3,
    "location_kernel_size": 5,
    "mel_mean": -1.0,
    "mel_std": 2.0,
}


def small(**model):
    torch.manual_seed(0)
    return build_any(ModelConfig(**{**SMALL, **model})).double().eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64)
    mel_lengths, token_lengths = torch.tensor([11, 7, 4]), torch.tensor([4, 6, 2])
    for b, T in enumerate(mel_lengths.tolist()):
        mel[b, :, T:] = 0
    tokens = torch.randint(0, 185, (3, 6), generator=generator)
    return mel, mel_lengths, tokens, token_lengths, torch.tensor([0, 1, 0])


def test_attention_is_the_published_sum():
    """Chorowski et al. 2015: e_n = w · tanh(W s + V h_n + U f_n), f = F * α, every sum written out."""
    torch.manual_seed(0)
    A, N, K, half = 6, 7, 3, 2
    attention = LocationSensitiveAttention(4, 5, A, K, 2 * half + 1).double()
    query, encoded = torch.randn(1, 4).double(), torch.randn(1, N, 5).double()
    location = torch.rand(1, 2, N).double()
    allowed = torch.tensor([[True] * (N - 1) + [False]])
    context, weights = attention(query, attention.key(encoded), encoded, allowed, location)
    W, V, U, F, w = (
        getattr(attention, name).weight.detach().numpy() for name in ("query", "key", "location", "filters", "score")
    )
    s, h, alpha = query[0].numpy(), encoded[0].numpy(), location[0].numpy()
    energies = []
    for n in range(N - 1):
        f = np.zeros(K)
        for k in range(K):
            for source in range(2):
                for j in range(-half, half + 1):
                    if 0 <= n + j < N:
                        f[k] += F[k, source, j + half] * alpha[source, n + j]
        energies.append(sum(w[0, a] * math.tanh(W[a] @ s + V[a] @ h[n] + U[a] @ f) for a in range(A)))
    exponentials = np.exp(energies)
    expected = exponentials / exponentials.sum()
    np.testing.assert_allclose(weights[0, :-1].detach(), expected, atol=1e-12)
    assert float(weights[0, -1].detach()) == 0
    np.testing.assert_allclose(context[0].detach(), expected @ h[:-1], atol=1e-12)


def test_a_prior_multiplies_the_attention():
    torch.manual_seed(0)
    attention = LocationSensitiveAttention(4, 5, 6, 3, 5).double()
    query, encoded, location = torch.randn(2, 4), torch.randn(2, 7, 5), torch.rand(2, 2, 7)
    arguments = query.double(), attention.key(encoded.double()), encoded.double()
    allowed, prior = torch.ones(2, 7, dtype=torch.bool), torch.rand(2, 7).double()
    _, plain = attention(*arguments, allowed, location.double())
    _, helped = attention(*arguments, allowed, location.double(), prior)
    product = plain * prior
    torch.testing.assert_close(helped, product / product.sum(1, keepdim=True))


def original_state(channels=8, hidden=12, attention=6, prenet=7, postnet=9, filters=3, kernel=5, mels=5):
    """A whole model's weights as the published implementation names and shapes them."""
    torch.manual_seed(3)

    def conv(a, b, size):
        return nn.Conv1d(a, b, size)

    def norm(width):
        layer = nn.BatchNorm1d(width)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
        return layer

    widths = [mels, postnet, postnet, postnet, postnet, mels]
    modules = {
        "embedding": nn.Embedding(148, channels),
        **{f"encoder.convolutions.{i}.0.conv": conv(channels, channels, 5) for i in range(3)},
        **{f"encoder.convolutions.{i}.1": norm(channels) for i in range(3)},
        "encoder.lstm": nn.LSTM(channels, channels // 2, bidirectional=True),
        "decoder.prenet.layers.0.linear_layer": nn.Linear(mels, prenet, bias=False),
        "decoder.prenet.layers.1.linear_layer": nn.Linear(prenet, prenet, bias=False),
        "decoder.attention_rnn": nn.LSTMCell(prenet + channels, hidden),
        "decoder.attention_layer.query_layer.linear_layer": nn.Linear(hidden, attention, bias=False),
        "decoder.attention_layer.memory_layer.linear_layer": nn.Linear(channels, attention, bias=False),
        "decoder.attention_layer.v.linear_layer": nn.Linear(attention, 1, bias=False),
        "decoder.attention_layer.location_layer.location_conv.conv": nn.Conv1d(2, filters, kernel, bias=False),
        "decoder.attention_layer.location_layer.location_dense.linear_layer": nn.Linear(filters, attention, bias=False),
        "decoder.decoder_rnn": nn.LSTMCell(hidden + channels, hidden),
        "decoder.linear_projection.linear_layer": nn.Linear(hidden + channels, mels),
        "decoder.gate_layer.linear_layer": nn.Linear(hidden + channels, 1),
        **{f"postnet.convolutions.{i}.0.conv": conv(a, b, 5) for i, (a, b) in enumerate(pairwise(widths))},
        **{f"postnet.convolutions.{i}.1": norm(width) for i, width in enumerate(widths[1:])},
    }
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def spoken_by_hand(state, tokens, n_frames):
    """Free-running synthesis of n_frames without dropout, in numpy, by the published names alone."""
    w = {name: value.double().numpy() for name, value in state.items()}

    def convolved(x, name):
        weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias", np.zeros(len(w[f"{name}.weight"])))
        half = weight.shape[2] // 2
        padded = np.pad(x, ((0, 0), (half, half)))
        columns = [np.tensordot(weight, padded[:, t : t + 2 * half + 1], 2) + bias for t in range(x.shape[1])]
        return np.stack(columns, 1)

    def normalised(x, name):
        scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return (x - w[f"{name}.running_mean"][:, None]) * scale[:, None] + w[f"{name}.bias"][:, None]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def lstm(x, h, c, name, suffix=""):
        weights = (w[f"{name}.{part}{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        w_ih, w_hh, b_ih, b_hh = weights
        i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    x = w["embedding.weight"][tokens].T
    for i in range(3):
        x = np.maximum(normalised(convolved(x, f"encoder.convolutions.{i}.0.conv"), f"encoder.convolutions.{i}.1"), 0)
    width, N = len(x) // 2, x.shape[1]
    ways = []
    for suffix, order in (("_l0", range(N)), ("_l0_reverse", reversed(range(N)))):
        h, c, states = np.zeros(width), np.zeros(width), {}
        for n in order:
            h, c = lstm(x[:, n], h, c, "encoder.lstm", suffix)
            states[n] = h
        ways.append(np.stack([states[n] for n in range(N)]))
    memory = np.concatenate(ways, 1)
    layer = "decoder.attention_layer."
    keys = memory @ w[f"{layer}memory_layer.linear_layer.weight"].T
    hidden = w["decoder.decoder_rnn.weight_hh"].shape[1]
    ah, ac, dh, dc = (np.zeros(hidden) for _ in range(4))
    context, previous, total = np.zeros(memory.shape[1]), np.zeros(N), np.zeros(N)
    frame, frames, gates = np.zeros(w["decoder.linear_projection.linear_layer.bias"].shape), [], []
    for _ in range(n_frames):
        seen = frame
        for i in range(2):
            seen = np.maximum(w[f"decoder.prenet.layers.{i}.linear_layer.weight"] @ seen, 0)
        ah, ac = lstm(np.concatenate([seen, context]), ah, ac, "decoder.attention_rnn")
        where = convolved(np.stack([previous, total]), f"{layer}location_layer.location_conv.conv").T
        energy = np.tanh(
            w[f"{layer}query_layer.linear_layer.weight"] @ ah
            + keys
            + where @ w[f"{layer}location_layer.location_dense.linear_layer.weight"].T
        )
        scores = np.exp((energy @ w[f"{layer}v.linear_layer.weight"].T)[:, 0])
        previous = scores / scores.sum()
        total = total + previous
        context = previous @ memory
        dh, dc = lstm(np.concatenate([ah, context]), dh, dc, "decoder.decoder_rnn")
        joined = np.concatenate([dh, context])
        frame, gate = (
            w[f"decoder.{name}.linear_layer.weight"] @ joined + w[f"decoder.{name}.linear_layer.bias"]
            for name in ("linear_projection", "gate_layer")
        )
        frames.append(frame)
        gates.append(gate[0])
    before = x = np.stack(frames, 1)
    for i in range(5):
        x = normalised(convolved(x, f"postnet.convolutions.{i}.0.conv"), f"postnet.convolutions.{i}.1")
        x = np.tanh(x) if i < 4 else x
    return before + x, np.array(gates)


def test_weights_of_the_published_implementation_say_the_same(tmp_path):
    state = original_state()
    torch.save({"state_dict": state, "iteration": 7}, tmp_path / "taco.pt")
    report = convert(tmp_path / "taco.pt", tmp_path / "voice")
    assert "148 symbols" in report
    loaded = load_model(tmp_path / "voice")
    assert isinstance(loaded.model, Tacotron2) and loaded.step == 7
    assert loaded.symbols == list(TACOTRON2_SYMBOLS) and len(TACOTRON2_SYMBOLS) == 148
    tokens = [5, 40, 71, 3, 100, 147, 12, 12]
    mel, gates = spoken_by_hand(state, tokens, 15)
    output = loaded.model.double().infer(
        torch.tensor([tokens]), torch.tensor([8]), torch.tensor([0]), [1], max_frames=15, gate_threshold=1.0, dropout=0
    )
    np.testing.assert_allclose(output.mel[0], mel, atol=1e-9)
    np.testing.assert_allclose(output.gate_logits[0], gates, atol=1e-9)
    assert np.abs(mel).max() > 0.5 and np.diff(gates).any()


def test_a_whole_tacotron2_is_recognised_by_its_weights_alone(tmp_path, capsys):
    torch.save({"state_dict": original_state()}, tmp_path / "taco.pt")
    state = load_weights(tmp_path / "taco.pt")
    assert "decoder_lstm.weight_ih" in state and "text_encoder.norms.1.running_var" in state
    assert main(["convert", str(tmp_path / "taco.pt"), str(tmp_path / "voice")]) == 0
    assert main(["info", str(tmp_path / "voice")]) == 0
    assert "kind tacotron2" in capsys.readouterr().out
    damaged = original_state()
    damaged["decoder.decoder_rnn.weight_hh"] = damaged["decoder.decoder_rnn.weight_hh"][:, 1:]
    torch.save({"state_dict": damaged}, tmp_path / "damaged.pt")
    with pytest.raises(InputError, match=r"decoder_lstm\.weight_hh' has shape"):
        convert(tmp_path / "damaged.pt", tmp_path / "other")


@pytest.mark.parametrize("frames_per_step", [1, 3])
def test_padding_and_batch_mates_change_nothing(frames_per_step):
    model = small(n_frames_per_step=frames_per_step)
    mel, mel_lengths, tokens, token_lengths, speakers = batch()
    together = model(mel, mel_lengths, tokens, token_lengths, speakers, dropout=0.0)
    for b, (T, N) in enumerate(zip(mel_lengths.tolist(), token_lengths.tolist())):
        alone = model(
            mel[b : b + 1, :, :T],
            mel_lengths[b : b + 1],
            tokens[b : b + 1, :N],
            token_lengths[b : b + 1],
            speakers[b : b + 1],
            dropout=0.0,
        )
        torch.testing.assert_close(together.mel[b, :, :T], alone.mel[0])
        torch.testing.assert_close(together.attention[0][b, :T, :N], alone.attention[0][0])
        assert not together.mel[b, :, T:].any()


@pytest.mark.parametrize("frames_per_step", [1, 3])
def test_teacher_forcing_with_what_it_said_says_the_same(frames_per_step):
    """Free running and teacher forcing are one decoder: fed its own frames, without dropout, it repeats them."""
    model = small(n_frames_per_step=frames_per_step)
    tokens, lengths, speaker = torch.tensor([[4, 9, 30, 2]]), torch.tensor([4]), torch.tensor([1])
    said = model.infer(tokens, lengths, speaker, [1], max_frames=12, gate_threshold=1.0, dropout=0.0)
    again = model(said.mel_before.clone(), said.mel_lengths, tokens, lengths, speaker, dropout=0.0)
    torch.testing.assert_close(again.mel, said.mel.clone())
    torch.testing.assert_close(again.gate_logits, said.gate_logits.clone())


def test_frames_depend_on_earlier_frames_alone():
    model = small()
    arguments = batch()
    mel = arguments[0].clone().requires_grad_()
    output = model(mel, *arguments[1:], dropout=0.0)
    output.mel_before[0, :, 5].sum().backward()
    assert float(mel.grad[0, :, 5:].abs().sum()) == 0 and float(mel.grad[0, :, 4].abs().sum()) > 0


def test_batch_norm_in_training_is_over_valid_positions():
    norm = MaskedBatchNorm(2).train()
    x = torch.randn(2, 2, 5)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    valid = torch.cat([x[0], x[1, :, :2]], 1)
    expected = torch.nn.functional.batch_norm(valid[None], None, None, training=True)[0]
    torch.testing.assert_close(norm(x, mask)[0], expected[:, :5])
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * valid.var(1))
    torch.testing.assert_close(norm.running_mean, 0.1 * valid.mean(1))


def test_dropout_of_the_pre_net_keeps_the_mean_and_is_seeded():
    prenet = Prenet(3, 2000)
    generator = torch.Generator().manual_seed(0)
    first, _ = prenet.masks((4,), 0.45, generator)
    assert float(first.mean()) == pytest.approx(1.0, abs=0.05)
    assert float((first == 0).float().mean()) == pytest.approx(0.45, abs=0.02)
    with pytest.raises(InputError, match="prenet_dropout is 1"):
        prenet.masks((4,), 1.0)


def test_losses_are_over_valid_frames():
    model = small()
    arguments = batch()
    output = model(*arguments, dropout=0.0)
    before, after = frame_errors(output, arguments[0])
    valid = [(output.mel[b, :, :T] - arguments[0][b, :, :T]).flatten() for b, T in enumerate(arguments[1].tolist())]
    torch.testing.assert_close(after, torch.cat(valid).square().mean())
    assert float(before) != float(after)


def test_the_text_encoder_goes_both_ways(tmp_path):
    flow_config = Config(model_config=ModelConfig(n_text_dim=8, n_hidden=8, n_attn_channels=8, n_speakers=2))
    torch.manual_seed(5)
    flowtron = build_model(flow_config.model)
    save_model(tmp_path / "flowtron", flowtron, flow_config, symbols=SYMBOLS, speakers=SPEAKERS)
    tacotron2 = small().float()
    table = warm_start(tacotron2, str(tmp_path / "flowtron"), ["text_encoder"], [], SPEAKERS, SYMBOLS)
    assert "text_encoder.convs.2.weight" in table
    for name, value in flowtron.text_encoder.state_dict().items():
        assert torch.equal(tacotron2.text_encoder.state_dict()[name], value), name
    config = Config(model_config=ModelConfig(**SMALL))
    save_model(tmp_path / "tacotron2", tacotron2, config, symbols=SYMBOLS, speakers=SPEAKERS)
    other = build_model(flow_config.model)
    warm_start(other, str(tmp_path / "tacotron2"), ["text_encoder"], [], SPEAKERS, SYMBOLS)
    assert torch.equal(other.text_encoder.convs[0].weight, flowtron.text_encoder.convs[0].weight)


def test_it_trains_resumes_and_its_loss_falls(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    options = {**SMALL, "n_mel_channels": 8, "n_frames_per_step": 2, "attn_prior_full_iters": 6}
    options |= {"attn_prior_fade_iters": 4, "use_ctc_loss": False, "ema_decay": 0.0, "input_noise": 0.0}
    config = tiny_config(corpus, tmp_path / "run", max_iters=24, iters_per_checkpoint=8, **options)
    train(config)
    measured = [
        json.loads((path / "model.json").read_text())["metrics"]
        for path in sorted((tmp_path / "run" / "checkpoints").iterdir())
    ]
    assert measured[-1]["validation/mel_before"] < 0.5 * measured[0]["validation/mel_before"]
    assert "teacher_forced/diagonality" in measured[-1] and "validation/nll" not in measured[-1]
    half = tiny_config(corpus, tmp_path / "half", max_iters=8, iters_per_checkpoint=8, **options)
    train(half)
    train(tiny_config(corpus, tmp_path / "half", max_iters=24, iters_per_checkpoint=8, **options))
    whole, resumed = (last_state(tmp_path / name)["model"] for name in ("run", "half"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = Config(model_config=ModelConfig(**{**SMALL, "n_mel_channels": 80, "n_frames_per_step": 2}))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tacotron2") / "voice"
    return save_model(folder, build_any(config.model), config, symbols=SYMBOLS, speakers=SPEAKERS)


def test_it_speaks_by_the_same_command(folder, tmp_path):
    command = ["say", "Hello there.", "-m", str(folder), "-i", "ben", "--quiet"]
    assert main([*command, "-o", str(tmp_path / "a.wav")]) == 0
    assert main([*command, "-o", str(tmp_path / "b.wav"), "--seed", "9"]) == 0
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "b.wav").read_bytes()


def test_draws_differ_by_seed_and_dropout_alone(folder):
    model = load_model(folder).model
    tokens = [20, 50, 60, 30]

    def speak(seeds, dropout=0.5):
        options = SamplingOptions(prenet_dropout=dropout, max_frames=40)
        return [r.mel for r in synthesize_mels(model, [Utterance(tokens, 0, seed) for seed in seeds], options)]

    a, b, again = *speak([1, 2]), speak([1])[0]
    torch.testing.assert_close(a, again)
    assert a.shape != b.shape or not torch.equal(a, b)
    first, second = speak([1, 2], dropout=0.0)
    torch.testing.assert_close(first, second)


def test_what_needs_z_is_refused(folder):
    voice = Synthesizer.load(folder)
    with pytest.raises(InputError, match="takes no z"):
        voice.render("Hello.", rate=1.5)
    with pytest.raises(InputError, match="no z to work with"):
        prior_source(voice, 1)
    with pytest.raises(InputError, match="it is a Tacotron 2"):
        Synthesizer.load(folder, engine="kernel")


def test_odd_configs_are_refused():
    with pytest.raises(InputError, match="an odd number"):
        parse_config({"model_config": {"location_kernel_size": 4}})
    with pytest.raises(InputError, match="needs at least 1"):
        parse_config({"model_config": {"n_speaker_dim": 0}})
