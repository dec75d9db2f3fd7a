"""Control in latent space: posterior, interpolation, mixtures and transfer, on a small model with random weights."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import MODEL, SPEAKERS, write_wav

from flowtron.config import ModelConfig
from flowtron.data import Utterance
from flowtron.encoding import predict_along
from flowtron.errors import InputError
from flowtron.inference import draw_latent, draw_noise
from flowtron.loss import nats_per_dim, nll_loss
from flowtron.model import build_model
from flowtron.model.prior import Mixture
from flowtron.style import (
    Posterior,
    blend_speakers,
    component_shares,
    curve,
    encode,
    interpolate,
    interpolation_source,
    prior_source,
    reconstruct,
    transfer_alignment,
    transfer_rhythm,
    translate,
)
from flowtron.synthesizer import Synthesizer
from flowtron.text import Tokenizer
from flowtron.vocoder import load_vocoder

TEXT = "A tone."


def make_voice(**model):
    torch.manual_seed(0)
    built = build_model(ModelConfig(**{**MODEL, **model})).eval()
    for flow in built.flows:
        # An untrained flow is the identity; here every path counts.
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.1)
    if built.duration_predictor is not None:
        # Durations that differ between speakers and tokens, and long enough.
        torch.nn.init.constant_(built.duration_predictor.output.bias, 0.3)
        torch.nn.init.normal_(built.duration_predictor.speaker_embedding.weight, std=0.5)
    vocoder = load_vocoder("griffin_lim")
    return Synthesizer(built, Tokenizer(p_arpabet=1.0), SPEAKERS, vocoder.settings, vocoder)


@pytest.fixture(scope="module")
def voice():
    return make_voice()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return [
        Utterance(write_wav(folder / f"{k}.wav", 0.4 + 0.2 * k, hz), text, speaker)
        for k, (hz, text, speaker) in enumerate(
            [(150, TEXT, "ann"), (220, "Another tone here.", "ben"), (300, "Hm.", "ann")]
        )
    ]


@pytest.fixture(scope="module")
def encodings(voice, recordings):
    return encode(voice, recordings)


MODELS = [{}, {"aligner_dim": 0}, {"n_flows": 1}, {"n_components": 3, "mean_scale": 2.0}, {"n_flows": 3}]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_decoding_with_the_same_durations_gives_the_recording_back(recordings, model):
    voice = make_voice(**model)
    for encoding in encode(voice, recordings):
        speech = reconstruct(voice, encoding)
        torch.testing.assert_close(speech.mel, encoding.mel, atol=2e-4, rtol=0)
        torch.testing.assert_close(speech.attention, encoding.attention, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", MODELS[:2], ids=str)
def test_mels_predicted_along_recordings_run_from_the_recording_to_the_likeliest(recordings, model):
    voice = make_voice(**model)
    for encoding in encode(voice, recordings[:2]):
        whole, half, none = (predict_along(voice, encoding, sigma) for sigma in (1.0, 0.5, 0.0))
        torch.testing.assert_close(whole, encoding.mel, atol=2e-4, rtol=0)
        other = replace(encoding, z=torch.randn_like(encoding.z))
        assert torch.equal(none, predict_along(voice, other, 0.0)) and none.shape == encoding.mel.shape
        assert (half - encoding.mel).abs().mean() < (none - encoding.mel).abs().mean()


def test_the_path_is_as_soft_as_the_voice_was_trained_with(recordings):
    voice = make_voice()
    at_default = encode(voice, recordings[:1])[0]
    voice.path_width = 0.5
    encoding = encode(voice, recordings[:1])[0]
    assert not torch.allclose(encoding.attention, at_default.attention, atol=1e-3)
    torch.testing.assert_close(reconstruct(voice, encoding).mel, encoding.mel, atol=2e-4, rtol=0)
    torch.testing.assert_close(predict_along(voice, encoding, 1.0), encoding.mel, atol=2e-4, rtol=0)
    assert blend_speakers(voice, *SPEAKERS, 0.5)[0].path_width == 0.5


def test_encoding_depends_on_speaker_and_not_on_batch_mates(voice, recordings, encodings):
    alone = encode(voice, recordings[1:2])[0]
    torch.testing.assert_close(alone.z, encodings[1].z, atol=1e-5, rtol=0)
    assert [each.speaker for each in encodings] == ["ann", "ben", "ann"]
    as_ann = encode(voice, recordings[1:2], speaker="ann")[0]
    assert as_ann.speaker == "ann" and not torch.allclose(as_ann.z, alone.z, atol=1e-3)
    assert int(alone.durations.sum()) == alone.mel.shape[1]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_nats_of_frames_average_to_the_loss(recordings, model):
    voice = make_voice(**model)
    encoding = encode(voice, recordings[:1])[0]
    T = encoding.mel.shape[1]
    prior = None
    if voice.model.aligner is not None:
        from flowtron.model.aligner import path_prior

        prior = path_prior(encoding.durations[None], T, 3.0)
    with torch.no_grad():
        tokens = torch.tensor([encoding.tokens])
        lengths = torch.tensor([T]), tokens, torch.tensor([tokens.shape[1]]), torch.tensor([0])
        output = voice.model(encoding.mel[None], *lengths, attention_prior=prior)
    expected = nats_per_dim(nll_loss(output), is_mixture=output.mixture is not None)
    assert float(encoding.nats.mean()) == pytest.approx(float(expected), abs=1e-4)


def test_too_short_and_unknown_are_refused(voice, tmp_path):
    short = Utterance(write_wav(tmp_path / "short.wav", 0.02), TEXT, "ann")
    with pytest.raises(InputError, match="2 frames, fewer than 4"):
        encode(voice, [short])
    with pytest.raises(InputError, match="'carl'"):
        encode(voice, [short], speaker="carl")


# The posterior.


def test_a_transcript_longer_than_its_recording_is_refused(voice, tmp_path):
    path = write_wav(tmp_path / "short.wav", seconds=0.2)
    with pytest.raises(InputError, match=r"short\.wav: \d+ tokens of transcript are more than its 18 frames"):
        encode(voice, [Utterance(path, "a long transcript " * 5, "ann")])


def test_a_recording_without_a_speaker_is_encoded_as_the_first(voice, tmp_path):
    path = write_wav(tmp_path / "a.wav")
    first, unnamed = (encode(voice, [Utterance(path, "one two.", name)])[0] for name in (SPEAKERS[0], ""))
    assert unnamed.speaker == SPEAKERS[0] and torch.equal(first.z, unnamed.z)


def test_the_posterior_is_between_prior_and_evidence():
    generator = torch.Generator().manual_seed(0)
    evidence = [torch.randn(5, n, generator=generator) for n in (7, 12, 3)]
    mean = torch.stack([z.repeat(1, 4)[:, :10] for z in evidence]).mean(0)
    prior = Posterior.of(evidence, strength=math.inf, n_frames=10)
    assert torch.equal(prior.mean, torch.zeros(5, 10)) and prior.variance == 1
    almost = Posterior.of(evidence, strength=1e-12, n_frames=10)
    torch.testing.assert_close(almost.mean, mean)
    assert almost.variance == pytest.approx(0, abs=1e-11)
    middle = Posterior.of(evidence, strength=3.0, n_frames=10)
    torch.testing.assert_close(middle.mean, mean / 2)
    assert middle.variance == pytest.approx(0.5)


def test_the_published_ratio():
    """Eight recordings with lambda 1e-4: r = 80,000."""
    evidence = [torch.ones(2, 3)] * 8
    posterior = Posterior.of(evidence, strength=1e-4)
    assert 1 / posterior.variance == pytest.approx(80_001)
    assert float(posterior.mean[0, 0]) == pytest.approx(80_000 / 80_001) and posterior.mean.shape == (2, 300)


def test_the_posterior_is_bayes_rule():
    """Against products of Gaussian densities on a grid."""
    evidence, strength = [0.5, 2.0, -0.3, 1.1], 0.7
    z = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    log_density = -0.5 * z**2 - sum((z - zeta) ** 2 for zeta in evidence) / (2 * strength)
    density = log_density.exp() / log_density.exp().sum()
    mean = float((z * density).sum())
    variance = float(((z - mean) ** 2 * density).sum())
    posterior = Posterior.of([torch.tensor([[zeta]]) for zeta in evidence], strength, n_frames=1)
    assert float(posterior.mean) == pytest.approx(mean, abs=1e-5)
    assert posterior.variance == pytest.approx(variance, abs=1e-5)


def test_averaging_over_time_keeps_what_is_constant():
    evidence = [torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[4.0, 4.0, 4.0, 8.0], [3.0, 3.0, 3.0, 3.0]])]
    posterior = Posterior.of(evidence, 1e-9, "time_and_batch")
    torch.testing.assert_close(posterior.mean, torch.tensor([[3.0], [2.0]]))
    assert posterior.sample(6, seed=1, sigma=0.0).shape == (2, 6)


def test_draws_of_the_posterior_have_its_mean_and_deviation():
    posterior = Posterior.of([torch.full((40, 5), 2.0)], strength=1.0)
    draw = posterior.sample(2000, seed=3)
    assert float(draw.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(draw.std()) == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert float(posterior.sample(2000, 3, sigma=0.2).std()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(posterior.sample(50, 3), draw[:, :50])


@pytest.mark.parametrize("n_flows", [1, 2])
def test_a_draw_of_the_posterior_has_the_noise_of_the_prior(n_flows):
    """In both orders of processing; pairs of an experiment differ then by the evidence alone."""
    voice = make_voice(n_flows=n_flows)
    posterior = Posterior.of([torch.full((80, 5), 2.0)], strength=1.0, aggregation="time_and_batch")
    prior = prior_source(voice, 3, 0.7)(90)
    torch.testing.assert_close(posterior.source(3, 0.7, voice)(90) - posterior.mean, prior)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no evidence"),
        (([torch.ones(1, 1)], 0.0), "lambda is 0.0"),
        (([torch.ones(1, 1)], 1.0, "mean"), "'mean'"),
        (([torch.ones(1, 1)], 1.0, "batch", 0), "n_frames is 0"),
    ],
)
def test_impossible_posteriors_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Posterior.of(*arguments)


# Synthesis from given latents.


def test_a_source_is_what_the_voice_draws(voice):
    for sigma in (0.0, 0.5):
        drawn = voice.render(TEXT, "ben", sigma=sigma, duration_sigma=0.3, seed=4)
        given = voice.render(TEXT, "ben", z=prior_source(voice, 4, sigma), duration_sigma=0.3, seed=4)
        assert torch.equal(drawn.z, given.z) and torch.equal(drawn.mel, given.mel)
    assert torch.equal(drawn.mel, voice(TEXT, speaker="ben", sigma=0.5, duration_sigma=0.3, seed=4, attempts=1).mel)


def test_sigma_over_time(voice):
    z = prior_source(voice, 4, [(0.0, 0.0), (0.5, 0.0), (1.0, 2.0)])(101)
    assert float(z[:, :50].abs().max()) == 0.0
    assert float(z[:, -5:].std()) == pytest.approx(2.0, rel=0.15)


def test_posterior_of_one_recording_with_its_durations_is_that_recording(voice, encodings):
    encoding = encodings[0]
    n_frames = encoding.z.shape[1]
    posterior = Posterior.of([encoding.z], strength=1e-7, n_frames=n_frames)
    speech = voice.render(TEXT, encoding.speaker, z=posterior.source(seed=1, sigma=0.0), durations=encoding.durations)
    torch.testing.assert_close(speech.mel, encoding.mel, atol=1e-3, rtol=0)


def test_rhythm_and_alignment_are_handed_over(voice, encodings):
    encoding = encodings[0]
    rhythm = transfer_rhythm(voice, encoding, "ben")
    frames = [round((i.end_seconds - i.start_seconds) * 22050 / 256) for i in rhythm.tokens]
    assert frames == encoding.durations.tolist()
    aligned = transfer_alignment(voice, encoding, "ben", z=encoding.z)
    torch.testing.assert_close(aligned.attention, encoding.attention, atol=1e-6, rtol=0)
    own = transfer_alignment(voice, encoding, encoding.speaker, z=encoding.z)
    torch.testing.assert_close(own.mel, encoding.mel, atol=2e-4, rtol=0)
    assert not torch.allclose(own.mel, aligned.mel, atol=1e-2)
    assert transfer_alignment(voice, encoding, "ben").mel.shape == encoding.mel.shape
    with pytest.raises(InputError, match="durations are of"):
        voice.render("Another text.", durations=encoding.durations)


@pytest.mark.parametrize("model", [{}, {"aligner_dim": 0}, {"n_flows": 1, "aligner_dim": 0}], ids=str)
def test_latents_given_to_models_with_and_without_durations(model):
    voice = make_voice(**model)
    posterior = Posterior.of([torch.randn(80, 30)], 0.1)
    speech = voice.render("A.", "ann", z=posterior.source(seed=1))
    assert torch.isfinite(speech.mel).all() and speech.mel.shape[1] > 0
    assert speech.z.shape == speech.mel.shape


# Interpolation.


def test_interpolation_of_latents():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(80, 200, generator=generator), torch.randn(80, 120, generator=generator)
    longer = b.repeat(1, 2)[:, :200]
    for spherical in (False, True):
        torch.testing.assert_close(interpolate(a, b, 0.0, spherical), a)
        torch.testing.assert_close(interpolate(a, b, 1.0, spherical), longer)
    middle = {spherical: interpolate(a, b, 0.5, spherical) for spherical in (False, True)}
    assert float(middle[False].std()) == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert float(middle[True].std()) == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(interpolate(a, a, 0.3, spherical=True), a)
    moving = interpolate(a, b, torch.linspace(0, 1, 200))
    torch.testing.assert_close(moving[:, 0], a[:, 0])
    torch.testing.assert_close(moving[:, -1], longer[:, -1])
    torch.testing.assert_close(moving[:, 100], (1 - 100 / 199) * a[:, 100] + 100 / 199 * longer[:, 100])


def test_from_monotone_to_expressive_within_an_utterance(voice):
    monotone, lively = prior_source(voice, 1, 0.0), prior_source(voice, 1, 1.0)
    z = interpolation_source(monotone, lively, [(0.0, 0.0), (1.0, 1.0)])(60)
    size = z.square().mean(0).sqrt()
    assert float(size[0]) == 0.0 and float(size[-10:].mean()) > 2 * float(size[5:15].mean())


def test_a_curve_goes_through_its_points():
    torch.testing.assert_close(curve([(0.0, 1.0), (0.5, 3.0), (1.0, 3.0)], 5), torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0]))
    for points in ([], [(0.5, 1.0), (0.2, 1.0)], [(0.0, 1.0), (1.5, 1.0)]):
        with pytest.raises(InputError, match="expected points"):
            curve(points, 5)


def test_blended_speakers_go_from_one_to_the_other(voice):
    def speak(speaking, speaker):
        return speaking.render(TEXT, speaker, sigma=0.5, duration_sigma=0.0)

    ends = [speak(voice, name) for name in SPEAKERS]
    for weight, end in ((0.0, ends[0]), (1.0, ends[1])):
        torch.testing.assert_close(speak(*blend_speakers(voice, *SPEAKERS, weight)).mel, end.mel, atol=1e-5, rtol=0)
    blended, name = blend_speakers(voice, *SPEAKERS, 0.5)
    assert name == "ann+ben" and blended.speakers == [*SPEAKERS, name]
    middle = speak(blended, name)
    assert not any(torch.equal(middle.mel, end.mel) for end in ends)
    torch.testing.assert_close(speak(blended, "ben").mel, ends[1].mel, atol=1e-5, rtol=0)
    assert voice.speakers == SPEAKERS, "the given voice must not change"
    assert voice.model.speaker_embedding.num_embeddings == 2


def test_blending_minds_rows_without_a_name(voice):
    """A table of four rows, of which two have names."""
    larger = copy.copy(voice)
    larger.model = copy.deepcopy(voice.model)
    for module in larger.model.modules():
        if hasattr(module, "speaker_embedding"):
            row = module.speaker_embedding.weight.detach()
            module.speaker_embedding = torch.nn.Embedding.from_pretrained(torch.cat([row, 5 + row]))
    blended, name = blend_speakers(larger, *SPEAKERS, 1.0)
    wanted = voice.render(TEXT, SPEAKERS[1], sigma=0.5, duration_sigma=0.0)
    torch.testing.assert_close(
        blended.render(TEXT, name, sigma=0.5, duration_sigma=0.0).mel, wanted.mel, atol=1e-5, rtol=0
    )


def test_a_speaker_that_changes_within_the_text(voice):
    constant, name = blend_speakers(voice, *SPEAKERS, 0.3)
    flat, _ = blend_speakers(voice, *SPEAKERS, [(0.0, 0.3), (1.0, 0.3)], TEXT)
    expected = constant.render(TEXT, name, seed=2)
    torch.testing.assert_close(flat.render(TEXT, name, seed=2).mel, expected.mel, atol=1e-4, rtol=0)
    moving, _ = blend_speakers(voice, *SPEAKERS, [(0.0, 0.0), (1.0, 1.0)], TEXT)
    assert not torch.equal(moving.render(TEXT, name, seed=2).mel, expected.mel)
    with pytest.raises(InputError, match="without speakers"):
        blend_speakers(make_voice(dummy_speaker_embedding=True), *SPEAKERS, 0.5)


# Mixtures.


def mixture_of(prob, mean, log_var):
    return Mixture(torch.tensor([mean]), torch.tensor([log_var]), torch.tensor([prob]))


def test_samples_of_a_mixture_have_its_moments():
    mixture = mixture_of([0.2, 0.5, 0.3], [[-3.0, 0.0, 4.0], [0.0, 1.0, 0.0]], [[0.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    z = draw_latent(60000, 2, 5, 1.0, mixture)
    prob = mixture.prob[0]
    mean = (prob * mixture.mean[0]).sum(1)
    variance = (prob * (mixture.mean[0].square() + mixture.log_var[0].exp())).sum(1) - mean.square()
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), variance, atol=0.2, rtol=0.02)
    # Without their own spread, the samples are the means, as often as their probabilities say.
    bare = draw_latent(60000, 2, 5, 0.0, mixture)[:, 0]
    shares = torch.stack([(bare == value).float().mean() for value in (-3.0, 0.0, 4.0)])
    torch.testing.assert_close(shares, prob, atol=0.01, rtol=0)
    assert torch.equal(draw_latent(10, 2, 5, 0.0, mixture), draw_latent(60000, 2, 5, 0.0, mixture)[:10])


def test_one_component_and_its_translation():
    mixture = mixture_of([0.5, 0.5], [[-3.0, 2.0], [0.0, 1.0]], [[0.0, -2.0], [0.0, 0.0]])
    chosen = draw_latent(500, 2, 5, 0.7, mixture, component=1)
    expected = mixture.mean[0, :, 1] + 0.7 * (0.5 * mixture.log_var[0, :, 1]).exp() * draw_noise(500, 2, 5)
    torch.testing.assert_close(chosen, expected)
    moved = translate(mixture, 1, 0, -2.0)
    shift = draw_latent(500, 2, 5, 0.7, moved, component=1) - chosen
    torch.testing.assert_close(shift[:, 0], torch.full((500,), -2.0 * math.exp(-1.0)), atol=1e-5, rtol=0)
    assert torch.equal(shift[:, 1], torch.zeros(500))
    assert float(mixture.mean[0, 0, 1]) == 2.0, "the given mixture must not change"


def test_a_voice_with_a_mixture_samples_it():
    voice = make_voice(n_components=4, mean_scale=9.0)
    z = voice.render(TEXT, "ann", sigma=1.0, duration_sigma=0.5).z
    moved = voice.model.mixture.mean[0].max(1).values > 0
    shares = (z > 4.7).float().mean(1)
    prob = voice.model.mixture.unconditional().prob[0]
    own = voice.model.mixture.mean[0].argmax(0)
    assert shares[~moved].max() == 0
    torch.testing.assert_close(shares[own], prob.detach(), atol=0.15, rtol=0)
    assert torch.equal(z, voice.render(TEXT, "ann", z=prior_source(voice, 1234, 1.0), duration_sigma=0.5).z)
    only = voice.render(TEXT, "ann", z=prior_source(voice, 1234, 0.0, component=2)).z
    assert torch.equal(only, voice.model.mixture.mean[0, :, 2][:, None].expand_as(only))
    with pytest.raises(InputError, match="component is 4, but this model's prior has 4"):
        prior_source(voice, 1, component=4)


def test_assignments_by_utterance_and_speaker(recordings, encodings):
    voice = make_voice(n_components=3, fixed_gaussian=False)
    assigned = encode(voice, recordings)
    shares = component_shares(assigned)
    assert list(shares) == ["ann", "ben"]
    torch.testing.assert_close(shares["ann"], (assigned[0].mixture.prob[0] + assigned[2].mixture.prob[0]) / 2)
    assert all(float(row.sum()) == pytest.approx(1.0, abs=1e-5) for row in shares.values())
    assert not torch.equal(assigned[0].mixture.mean, assigned[2].mixture.mean)
    with pytest.raises(InputError, match="no mixture"):
        component_shares(encodings)
