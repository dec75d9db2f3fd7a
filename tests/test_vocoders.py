"""The vocoder interface: loading, settings, streams that equal the whole; SqueezeWave, HiFi-GAN, source-filter."""

import json
import math
import shutil

import pytest
import torch
from torch.nn import functional

from flowtron.audio import AudioSettings
from flowtron.checkpoint import read_vocoder, save_vocoder
from flowtron.errors import InputError
from flowtron.vocoder import GriffinLim, load_vocoder
from flowtron.vocoder.base import frame_noise, in_context
from flowtron.vocoder.griffin_lim import InverseStft
from flowtron.vocoder.hifigan import HifiGan
from flowtron.vocoder.layers import fold_weight_norm
from flowtron.vocoder.loading import build_vocoder_model
from flowtron.vocoder.pitch import track_pitch
from flowtron.vocoder.source_filter import SourceFilterNet, minimum_phase, phases, pulses
from flowtron.vocoder.squeezewave import SqueezeWave, fold_batch_norm

SETTINGS = AudioSettings(sample_rate=8000, n_fft=128, hop_length=32, win_length=128, n_mels=6, f_max=4000.0)
ARCHITECTURES = {
    "waveglow": {
        "n_mel_channels": 6,
        "n_flows": 3,
        "n_early_every": 2,
        "WN_config": {"n_layers": 2, "n_channels": 8},
        "upsample_kernel": 128,
        "upsample_stride": 32,
        "weight_norm": True,
    },
    "squeezewave": {
        "n_mel_channels": 6,
        "n_flows": 3,
        "n_group": 16,
        "n_early_every": 2,
        "n_early_size": 4,
        "WN_config": {"n_layers": 2, "n_channels": 8},
        "hop_length": 32,
    },
    "hifigan": {
        "upsample_rates": [8, 4],
        "upsample_kernel_sizes": [16, 8],
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 3]],
        "num_mels": 6,
        "weight_norm": True,
    },
    "wavenet": {
        "n_mel_channels": 6,
        "n_layers": 4,
        "n_stacks": 2,
        "n_residual": 8,
        "n_skip": 8,
        "upsample_factors": [8, 4],
        "weight_norm": True,
    },
    "source_filter": {"n_channels": 8, "n_blocks": 2, "n_pitch_channels": 8, "n_pitch_blocks": 1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("vocoders")
    for kind, architecture in ARCHITECTURES.items():
        model = build_vocoder_model(kind, architecture, SETTINGS)
        for name, parameter in model.named_parameters():
            if ".end." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        save_vocoder(root / kind, kind, architecture, model.state_dict(), SETTINGS)
    return root


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_every_kind_speaks_and_its_stream_is_the_whole(folders, kind):
    options = {"chunk_frames": 0} if kind == "wavenet" else {}
    vocoder = load_vocoder(folders / kind, SETTINGS, **options)
    torch.manual_seed(1)
    mel = torch.randn(2, 6, 90) - 3
    wav = vocoder(mel)
    assert wav.shape == (2, 90 * 32) and wav.dtype == torch.float32
    assert wav.isfinite().all() and 0 < wav.abs().max() <= 1
    assert torch.allclose(vocoder(mel[1:]), wav[1:], atol=1e-4)
    assert torch.equal(vocoder(mel), wav)
    for sizes in ([90], [1, 40, 9, 40], [5] * 18):
        pieces = list(vocoder.stream(mel[0].split(sizes, 1)))
        assert len(pieces) > 1 or len(sizes) == 1
        assert (torch.cat(pieces) - wav[0]).abs().max() < 2e-4
    assert list(vocoder.stream(iter(()))) == []


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_short_mels_speak_too(folders, kind):
    vocoder = load_vocoder(folders / kind)
    for n_frames in (1, 2, 3):
        assert vocoder(torch.zeros(1, 6, n_frames) - 3).shape == (1, 32 * n_frames)


def test_mels_of_other_settings_are_refused(folders):
    with pytest.raises(InputError, match=r"hop_length 32.* 256"):
        load_vocoder(
            folders / "hifigan", AudioSettings(sample_rate=8000, n_fft=128, win_length=128, n_mels=6, f_max=4000)
        )
    with pytest.raises(InputError, match=r"f_max 4000.0.* 3000.0"):
        load_vocoder(
            folders / "waveglow",
            AudioSettings(sample_rate=8000, n_fft=128, hop_length=32, win_length=128, n_mels=6, f_max=3000.0),
        )


def test_wrong_names_and_files_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="'griffin_lim'"):
        load_vocoder("melgan")
    (tmp_path / "waveglow.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="flowtron convert"):
        load_vocoder(tmp_path / "waveglow.pt")
    with pytest.raises(InputError, match="only WaveGlow"):
        load_vocoder(folders / "hifigan", dtype=torch.bfloat16)
    with pytest.raises(InputError, match="expected one of waveglow"):
        build_vocoder_model("melgan", {}, SETTINGS)
    with pytest.raises(InputError, match="architecture"):
        build_vocoder_model("hifigan", {"layers": 3}, SETTINGS)
    save_vocoder(tmp_path / "odd", "hifigan", {"num_mels": 6}, {"a": torch.zeros(1)}, SETTINGS)
    with pytest.raises(InputError, match="larger than its weights"):
        load_vocoder(tmp_path / "odd")
    assert isinstance(load_vocoder("griffin_lim", SETTINGS, n_iter=3), GriffinLim)


def described(folders, tmp_path, kind, change):
    """Copy a vocoder's folder, its description changed."""
    folder = shutil.copytree(folders / kind, tmp_path / kind)
    description = json.loads((folder / "vocoder.json").read_text())
    change(description)
    (folder / "vocoder.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(
    "kind, name, value",
    [
        *(("waveglow", "WN_config", {"n_layers": 2, "n_channels": n}) for n in (3000, 10**7)),
        ("hifigan", "upsample_initial_channel", 10**5),
        ("source_filter", "n_channels", 10**5),
        ("source_filter", "n_blocks", 10**9),
    ],
)
def test_networks_larger_than_their_weights_are_not_made(folders, tmp_path, kind, name, value):
    folder = described(folders, tmp_path, kind, lambda each: each["architecture"].update({name: value}))
    with pytest.raises(InputError, match=rf"{kind}: .*larger than its weights"):
        load_vocoder(folder)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "kind, name, value",
    [
        ("waveglow", "WN_config", {"n_layers": 2, "n_channels": -1}),
        ("waveglow", "WN_config", {"n_layers": 10**9, "n_channels": 8}),
        *(("waveglow", name, 0) for name in ("n_group", "n_early_every", "upsample_stride")),
        *(("waveglow", "n_flows", n) for n in (-1, 10**9, "x")),
        *(("waveglow", "upsample_stride", n) for n in ("x", 32.0, -32)),
        ("squeezewave", "hop_length", 0),
        ("hifigan", "upsample_rates", [8, None]),
        ("hifigan", "upsample_rates", [8, 8]),
        ("wavenet", "n_stacks", 0),
        ("wavenet", "upsample_factors", [8, 8]),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(folders, tmp_path, kind, name, value):
    folder = described(folders, tmp_path, kind, lambda each: each["architecture"].update({name: value}))
    with pytest.raises(InputError, match=rf"{kind}: .*[a-z]\.$"):
        load_vocoder(folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("sample_rate", "x"),
        ("hop_length", 0),
        ("n_fft", 10**9),
        ("f_max", math.nan),
        ("f_max", 10**400),
        ("f_max", 1e5),
        ("win_length", 999),
    ],
)
def test_audio_settings_out_of_range_are_refused(folders, tmp_path, name, value):
    folder = described(folders, tmp_path, "hifigan", lambda each: each["audio"].update({name: value}))
    with pytest.raises(InputError, match=rf"vocoder\.json: .*{name}"):
        load_vocoder(folder)


def test_weight_norm_without_its_half_is_refused(folders, tmp_path):
    file = read_vocoder(folders / "hifigan")
    state = {name: value for name, value in file.state.items() if name != "conv_pre.weight_g"}
    save_vocoder(tmp_path / "half", "hifigan", file.architecture, state, SETTINGS)
    with pytest.raises(InputError, match=r"half: weight 'conv_pre\.weight_g' is missing"):
        load_vocoder(tmp_path / "half")


def test_noise_of_frames_does_not_depend_on_the_pieces():
    whole = frame_noise(torch.Generator().manual_seed(3), 20, 48)
    generator = torch.Generator().manual_seed(3)
    pieces = [frame_noise(generator, n, 48) for n in (1, 6, 0, 13)]
    assert torch.equal(torch.cat(pieces), whole)


def test_a_function_with_context_runs_on_pieces():
    kernel = torch.randn(1, 1, 7).double()
    run = lambda x: (functional.conv1d(x[None], kernel, padding=3)[0].repeat_interleave(2, 1),)  # noqa: E731
    x = torch.randn(1, 40).double()
    for sizes in ([40], [1] * 40, [7, 20, 13]):
        pieces = [out for (out,) in in_context(((piece,) for piece in x.split(sizes, 1)), 3, run)]
        assert (torch.cat(pieces, 1) - run(x)[0]).abs().max() < 1e-12


def test_squeezewave_inverts_and_folds():
    torch.manual_seed(0)
    model = SqueezeWave(**ARCHITECTURES["squeezewave"]).double()
    for network in model.WN:
        torch.nn.init.normal_(network.end.weight, std=0.2)
    audio, mel = torch.randn(2, 320).double(), torch.randn(2, 6, 10).double()
    for _ in range(3):
        model(audio, mel)
    model.eval()
    with torch.no_grad():
        z = model(audio, mel).z
        assert (model.inverse(z, mel) - audio).abs().max() < 1e-8
        folded = SqueezeWave(**ARCHITECTURES["squeezewave"], batch_norm=False).double()
        folded.load_state_dict(fold_batch_norm(model.state_dict()))
        assert (folded.inverse(z, mel) - audio).abs().max() < 1e-8


def test_squeezewave_log_determinant_is_that_of_the_jacobian():
    torch.manual_seed(0)
    model = SqueezeWave(**ARCHITECTURES["squeezewave"]).double().eval()
    for network in model.WN:
        torch.nn.init.normal_(network.end.weight, std=0.2)
    audio, mel = torch.randn(1, 64).double(), torch.randn(1, 6, 2).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, mel).z.flatten(), audio)[:, 0]
    output = model(audio, mel)
    total = sum(each.sum() for each in output.log_scales) + output.log_dets.sum()
    assert total.item() == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)


def plain_hifigan(state, mel, config):
    """HiFi-GAN's generator written down anew: zero-stuffing for upsampling, taps one by one for convolutions."""

    def weight(name):
        g, v = state[f"{name}.weight_g"], state[f"{name}.weight_v"]
        return torch.stack([g[i] * v[i] / torch.linalg.norm(v[i]) for i in range(len(v))]), state[f"{name}.bias"]

    def conv(x, name, dilation=1):
        w, b = weight(name)
        reach = dilation * (w.shape[2] - 1) // 2
        padded = functional.pad(x, (reach, reach))
        taps = [
            torch.einsum("oi,bit->bot", w[:, :, k], padded[:, :, k * dilation : k * dilation + x.shape[2]])
            for k in range(w.shape[2])
        ]
        return sum(taps) + b[:, None]

    def upsample(x, name, rate, kernel):
        w, b = weight(name)
        stuffed = x.new_zeros(*x.shape[:2], (x.shape[2] - 1) * rate + 1)
        stuffed[:, :, ::rate] = x
        margin = kernel - 1 - (kernel - rate) // 2
        padded = functional.pad(stuffed, (margin, margin))
        length = x.shape[2] * rate
        return b[:, None] + sum(
            torch.einsum("io,bit->bot", w[:, :, kernel - 1 - k], padded[:, :, k : k + length]) for k in range(kernel)
        )

    def rectify(x, slope):
        return torch.maximum(x, slope * x)

    x = conv(mel, "conv_pre")
    n = len(config["resblock_kernel_sizes"])
    for i, (rate, kernel) in enumerate(zip(config["upsample_rates"], config["upsample_kernel_sizes"])):
        x = upsample(rectify(x, 0.1), f"ups.{i}", rate, kernel)
        total = 0
        for j in range(n):
            y, name = x, f"resblocks.{i * n + j}"
            for d, dilation in enumerate(config["resblock_dilation_sizes"][j]):
                if config["resblock"] == "1":
                    inner = conv(rectify(y, 0.1), f"{name}.convs1.{d}", dilation)
                    y = y + conv(rectify(inner, 0.1), f"{name}.convs2.{d}")
                else:
                    y = y + conv(rectify(y, 0.1), f"{name}.convs.{d}", dilation)
            total = total + y
        x = total / n
    return torch.tanh(conv(rectify(x, 0.01), "conv_post"))[:, 0]


@pytest.mark.parametrize("kind", ["1", "2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hifigan_equals_an_independent_formulation(kind, dtype):
    torch.manual_seed(0)
    config = {**ARCHITECTURES["hifigan"], "resblock": kind}
    config.pop("weight_norm")
    model = HifiGan(**config).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):
            parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
    mel = torch.randn(2, 6, 9).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    with torch.no_grad():
        expected = plain_hifigan(model.state_dict(), mel, config)
        assert (model(mel) - expected).abs().max() < tolerance
        folded = HifiGan(**config, weight_norm=False).to(dtype)
        folded.load_state_dict(fold_weight_norm(model.state_dict()))
        assert (folded(mel) - expected).abs().max() < tolerance
    assert expected.shape == (2, 9 * 32)


def test_hifigan_has_the_published_names_and_shapes():
    state = HifiGan().state_dict()
    assert state["conv_pre.weight_v"].shape == (512, 80, 7)
    assert state["ups.0.weight_v"].shape == (512, 256, 16) and state["ups.0.weight_g"].shape == (512, 1, 1)
    assert state["resblocks.11.convs2.2.weight_v"].shape == (32, 32, 11)
    assert state["conv_post.bias"].shape == (1,)
    # 13.92 million, weights alone, as the paper's table 1 gives for V1.
    folded = fold_weight_norm(state)
    assert sum(value.numel() for value in folded.values()) == pytest.approx(13.92e6, rel=1e-3)


def test_pulses_are_the_sum_of_their_harmonics():
    pitch = torch.full((1, 2000), 230.0)
    phase = (torch.arange(2000) * 230.0 / 8000 * 2 * math.pi).remainder(2 * math.pi)[None]
    n = int(4000 / 230)
    expected = sum(torch.cos(k * phase.double()) for k in range(1, n + 1)) * math.sqrt(2 / n)
    ours = pulses(phase, pitch, 8000)
    assert (ours - expected).abs().max() < 1e-2
    assert float(ours.square().mean()) == pytest.approx(1.0, rel=0.02)


def test_minimum_phase_is_that_of_a_known_filter():
    # A zero and a pole within the unit circle: minimum phase by construction.
    omega = torch.linspace(0, math.pi, 129, dtype=torch.float64)
    z = torch.polar(torch.ones_like(omega), -omega)
    response = (1 - 0.6 * z) / (1 + 0.5 * z)
    assert (minimum_phase(response.abs().log()) - response.angle()).abs().max() < 1e-6


def test_phase_runs_on_over_pieces():
    pitch = torch.tensor([[100.0, 120.0, 90.0, 100.0]])
    whole, _ = phases(pitch, 32, 8000, torch.zeros(1))
    first, _ = phases(pitch[:, :3], 32, 8000, torch.zeros(1), open_end=True)
    second, _ = phases(pitch[:, 2:], 32, 8000, first[:, -1])
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-9)
    assert whole.shape == (1, 128)


def test_pitch_of_a_gliding_voice_is_found():
    rate, n = 22050, 22050
    truth = torch.linspace(110, 180, n)
    phase = (truth.double() * 2 * math.pi / rate).cumsum(0)
    voice = sum(torch.cos(k * phase) / k for k in range(1, 12)).float() * 0.1
    silence = torch.zeros(8000)
    (pitch, periodicity), (none, quiet) = track_pitch([voice, silence], AudioSettings())
    at = truth[::256][: len(pitch)]
    inner = slice(4, -6)
    assert ((pitch[: len(at)] / at).log2().abs()[inner] * 1200 < 20).all()
    assert periodicity[inner].min() > 0.9 and quiet.max() < 0.1
    assert len(none) == 8000 // 256 + 1


@pytest.mark.parametrize("hop", [256, 300])
def test_griffin_lim_inverts_spectra_as_torch_does(hop: int) -> None:
    window = functional.pad(torch.hann_window(900), (62, 62))
    spectrum = torch.randn(2, 513, 9, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    expected = torch.istft(spectrum, 1024, hop, window=window)
    torch.testing.assert_close(InverseStft(window, hop, 9)(spectrum), expected, atol=1e-6, rtol=1e-5)


def test_source_filter_starts_at_the_level_of_the_mel():
    torch.manual_seed(0)
    settings = AudioSettings()
    net = SourceFilterNet(settings, n_channels=8, n_blocks=1, n_pitch_channels=8, n_pitch_blocks=1)
    curves = net.filters(torch.full((1, 80, 4), -5.0))
    assert curves.shape == (1, 4, 8, 257)
    assert float(curves[:, [0, 2, 3]].mean()) == pytest.approx(-5.0 + net.offset - (0.3 + 1.0 + 1.5) / 3, abs=0.05)
    logits = torch.full((1, 1, 160), -20.0)
    logits[..., 80] = logits[..., 81] = 5.0
    between = (net.grid[80] * net.grid[81]).sqrt()
    assert float(net.pitch_hz(logits)) == pytest.approx(float(between), rel=1e-4)
