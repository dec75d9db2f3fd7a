"""WaveNet: likelihoods, causality, cached generation, the vocoder."""

import math

import pytest
import torch

from flowtron.audio import AudioSettings
from flowtron.vocoder.layers import fold_weight_norm
from flowtron.vocoder.wavenet import (
    Generator,
    WaveNet,
    WaveNetVocoder,
    draw,
    mixture_nll,
    mu_law,
    mu_law_inverse,
)

SMALL = {"n_mel_channels": 5, "n_layers": 6, "n_stacks": 2, "n_residual": 16, "n_skip": 8, "upsample_factors": [4, 4]}


def small(n_mixtures=3, dtype=torch.float32, **changes):
    torch.manual_seed(1)
    return WaveNet(**{**SMALL, **changes}, n_mixtures=n_mixtures).to(dtype).eval()


def test_mixture_probabilities_sum_to_one():
    torch.manual_seed(0)
    # Wide and narrow logistics; the density stands in where a class is much narrower than they are.
    parameters = torch.cat(
        [torch.randn(1, 3, 1), torch.tensor([[[-0.3], [0.1], [1.0]]]), torch.tensor([[[-3.0], [-7.0], [-5.0]]])], 1
    )
    classes = torch.linspace(-1, 1, 65536, dtype=torch.float64)
    nll = mixture_nll(parameters.double().expand(1, 9, 65536), classes[None], -16.0)
    # The two tails take up to a thousandth of the range on either side, each as a whole.
    inner = (classes.abs() <= 0.999).nonzero()[:, 0]
    total = (-nll[0, inner]).exp().sum()
    edge = classes[inner[-1] + 1], classes[inner[0] - 1]
    tails = sum(float((-mixture_nll(parameters.double(), each.reshape(1, 1), -16.0)).exp()) for each in edge)
    assert float(total) + tails == pytest.approx(1.0, abs=2e-3)


def test_mixture_follows_the_logistic_where_it_is_smooth():
    parameters = torch.tensor([0.0, 0.2, math.log(0.1)]).double()[None, :, None]
    x = torch.tensor([[0.25]]).double()
    u = (0.25 - 0.2) / 0.1
    density = math.exp(-u) / (0.1 * (1 + math.exp(-u)) ** 2)
    assert float(mixture_nll(parameters, x, -16.0)) == pytest.approx(-math.log(density * 2 / 65535), abs=1e-6)


def test_mixture_has_finite_gradients_everywhere():
    parameters = torch.randn(2, 9, 50, requires_grad=True)
    wav = torch.cat([torch.tensor([-1.0, -0.9995, 0.9995, 1.0, 0.0]), torch.rand(45) * 2 - 1]).expand(2, -1)
    mixture_nll(parameters * 20, wav, -16.0).mean().backward()
    assert parameters.grad.isfinite().all()


def test_mu_law_goes_both_ways():
    classes = torch.arange(256)
    assert torch.equal(mu_law(mu_law_inverse(classes)), classes)
    wav = torch.linspace(-1, 1, 1001)
    assert (mu_law_inverse(mu_law(wav)) - wav).abs().max() < 0.025
    assert int(mu_law(torch.tensor(-1.0))) == 0 and int(mu_law(torch.tensor(1.0))) == 255


@pytest.mark.parametrize("n_mixtures", [0, 3])
def test_predictions_depend_on_the_past_alone(n_mixtures):
    net = small(n_mixtures, torch.float64)
    wav, mel = torch.rand(1, 96).double() * 2 - 1, torch.randn(1, 5, 6).double()
    conditioning = net.upsampling(mel)
    samples = net.encode(wav)
    before = net.predict(samples, conditioning)
    samples[0, 40] = 5 if n_mixtures == 0 else -samples[0, 40]
    change = (net.predict(samples, conditioning) - before).abs().amax((0, 1))
    assert change[:41].max() == 0 and change[41] > 0
    assert net.receptive_field == 2 * 2 * (1 + 2 + 4) + 1
    assert change[41 + net.receptive_field :].max() == 0


@pytest.mark.parametrize("n_mixtures", [0, 3])
@pytest.mark.parametrize("compiled", [True, False])
def test_cached_generation_equals_the_full_forward(n_mixtures, compiled):
    dtype = torch.float32 if compiled else torch.float64
    net = small(n_mixtures, dtype)
    mel = torch.randn(3, 5, 5).to(dtype)
    wav = torch.rand(3, 80).to(dtype) * 2 - 1
    with torch.no_grad():
        full = net(wav, mel).transpose(1, 2)
        conditioning, given = net.upsampling(mel), net.encode(wav)
        run = Generator(net, 3, compiled=compiled)
        assert (run._library is not None) == compiled
        # In pieces: the rings carry over.
        pieces = [run(conditioning[..., a:b], given=given[:, a:b]) for a, b in ((0, 1), (1, 34), (34, 80))]
    ours = torch.cat([piece.parameters for piece in pieces], 1)
    assert (ours - full).abs().max() < (1e-4 if compiled else 1e-10)
    assert torch.equal(torch.cat([piece.samples for piece in pieces], 1), given)


@pytest.mark.parametrize("n_mixtures", [0, 3])
def test_kernel_and_torch_draw_the_same(n_mixtures):
    net = small(n_mixtures)
    torch.manual_seed(3)
    conditioning, uniforms = torch.randn(2, 5, 40), torch.rand(2, 40, 2)
    with torch.no_grad():
        drawn = [Generator(net, 2, compiled=compiled)(conditioning, uniforms) for compiled in (True, False)]
    assert (drawn[0].samples - drawn[1].samples).abs().max() < 1e-3


def test_draws_have_the_distribution_of_the_parameters():
    net = small(2)
    torch.manual_seed(0)
    parameters = torch.tensor([1.0, 0.0, -0.5, 0.5, -4.0, -5.0]).expand(20000, -1)
    samples = draw(net, parameters, torch.rand(20000, 2))
    lower = samples < 0
    assert float(lower.float().mean()) == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.015)
    # A logistic's standard deviation is its scale times pi / sqrt 3.
    assert float(samples[lower].std()) == pytest.approx(math.exp(-4) * math.pi / math.sqrt(3), rel=0.05)
    assert float(samples[~lower].mean()) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("n_mixtures", [0, 3])
def test_loss_falls_on_a_sound_to_learn(n_mixtures):
    net = small(n_mixtures)
    torch.manual_seed(0)
    wav = 0.4 * torch.sin(torch.arange(160) * 0.3)[None]
    mel = torch.zeros(1, 5, 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = net.loss(wav, mel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 1


def vocoder(chunk_frames):
    net = small()
    settings = AudioSettings(sample_rate=2000, n_fft=64, hop_length=16, win_length=64, n_mels=5, f_max=1000.0)
    folded = WaveNet(**SMALL, n_mixtures=3, weight_norm=False)
    folded.load_state_dict(fold_weight_norm(net.state_dict()))
    return WaveNetVocoder(folded, settings, chunk_frames)


def test_stream_equals_the_whole_without_chunks():
    sound = vocoder(0)
    mel = torch.randn(1, 5, 30)
    whole = sound(mel)[0]
    pieces = list(sound.stream(mel[0].split([1, 3, 10, 16], 1)))
    assert len(pieces) > 2
    assert (torch.cat(pieces) - whole).abs().max() < 1e-4


def test_chunks_cover_the_sound_and_batch_mates_do_not_matter():
    sound = vocoder(8)
    mel = torch.randn(2, 5, 29)
    wav = sound(mel)
    assert wav.shape == (2, 29 * 16)
    assert wav.abs().max() <= 1
    assert torch.allclose(sound(mel[1:])[0], wav[1], atol=1e-5)
