"""Sound files in and out, log-mels against recorded ones, their inverse, and Griffin-Lim."""

import os
import struct
from pathlib import Path

import filelock
import numpy as np
import pytest
import soundfile
import torch

from flowtron import audio
from flowtron.audio import AudioSettings, load_wav, log_mel, magnitudes, mel_filters, mel_to_magnitude, save_wav
from flowtron.checkpoint import VOICES
from flowtron.errors import InputError
from flowtron.vocoder import GriffinLim, load_vocoder

DATA = Path(__file__).parent / "data" / "mel"
CASES = ["noise", "chirp", "harmonic"]
RATE = 22050


def recorded(case, dtype=torch.float64):
    wav = torch.from_numpy(np.load(DATA / f"{case}_inputs.npz")["audio_int16"]).to(dtype) / 32768
    return wav, torch.from_numpy(np.load(DATA / f"{case}_outputs_f64.npz")["mel"])


def tone(seconds=0.3, hz=440.0, rate=RATE, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
@pytest.mark.parametrize("case", CASES)
def test_log_mel_is_the_recorded_one(case, dtype, tolerance):
    wav, expected = recorded(case, dtype)
    mel = log_mel(wav)
    assert mel.dtype == dtype
    torch.testing.assert_close(mel.double(), expected, atol=tolerance, rtol=0)


def test_magnitudes_are_the_recorded_ones():
    wav, _ = recorded("harmonic")
    expected = torch.from_numpy(np.load(DATA / "harmonic_outputs.npz")["magnitude_first8"][0]).double()
    # The recording is in float32, with magnitudes up to 90.
    torch.testing.assert_close(magnitudes(wav, AudioSettings())[:, :8], expected, atol=1e-4, rtol=0)


def test_a_batch_of_sounds_gives_the_mels_of_each():
    wavs = torch.stack([recorded(case)[0] for case in CASES])
    together = log_mel(wavs)
    for mel, wav in zip(together, wavs):
        torch.testing.assert_close(mel, log_mel(wav), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 255, 256, 512, 513, 1024, 5000])
def test_frames_of_short_sounds(n_samples):
    mel = log_mel(torch.rand(n_samples) - 0.5)
    assert mel.shape == (80, n_samples // 256 + 1) and bool(mel.isfinite().all())


def test_mel_of_other_settings():
    settings = AudioSettings(sample_rate=16000, n_fft=512, hop_length=200, win_length=400, n_mels=40, f_max=7600.0)
    mel = log_mel(torch.from_numpy(tone(1.0, 1000.0, 16000)), settings)
    assert mel.shape == (40, 81)
    import librosa

    centres = librosa.mel_frequencies(42, fmin=0.0, fmax=7600.0)[1:-1]
    assert abs(centres[int(mel[:, 40].argmax())] - 1000) < 150


def test_silence_is_the_floor():
    torch.testing.assert_close(log_mel(torch.zeros(3000)), torch.full((80, 12), float(np.log(1e-5))))


FORMATS = [
    *(("wav", subtype) for subtype in ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")),
    *(("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("aiff", "PCM_16"), ("mp3", "MPEG_LAYER_III")),
]
COARSE = {"ULAW": 0.02, "IMA_ADPCM": 0.05, "PCM_U8": 0.01, "VORBIS": 0.05, "MPEG_LAYER_III": 0.05}


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_every_format_is_read(suffix, subtype, tmp_path):
    path = tmp_path / f"sound.{suffix}"
    written = tone(0.5)
    soundfile.write(path, written, RATE, subtype=subtype)
    wav = load_wav(path, RATE)
    assert wav.dtype == torch.float32 and wav.dim() == 1
    n = min(len(wav), len(written)) - 2000
    difference = (wav[1000:n] - torch.from_numpy(written)[1000:n]).abs().max()
    assert difference < COARSE.get(subtype, 1e-4)


def test_sixteen_bit_samples_are_read_exactly(tmp_path):
    samples = np.array([-32768, -1, 0, 1, 12345, 32767], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    assert torch.equal(load_wav(tmp_path / "a.wav"), torch.from_numpy(samples.astype(np.float32) / 32768))


def test_stereo_is_mixed_down(tmp_path):
    left, right = tone(), tone(hz=660.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    torch.testing.assert_close(load_wav(tmp_path / "a.wav"), torch.from_numpy((left + right) / 2))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_another_rate_is_refused_or_converted(rate, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, rate=rate), rate)
    with pytest.raises(InputError, match=rf"a\.wav: sample rate is {rate} Hz, expected {RATE} Hz.*resample"):
        load_wav(path, RATE)
    assert len(load_wav(path)) == rate
    wav = load_wav(path, RATE, resample=True)
    assert abs(len(wav) - RATE) <= 1
    middle = slice(2000, 20000)
    torch.testing.assert_close(wav[middle], torch.from_numpy(tone(1.0))[middle], atol=2e-3, rtol=0)


def test_silence_at_the_ends_is_trimmed(tmp_path):
    loud = tone(0.5)
    quiet = np.zeros(RATE // 2, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, loud, quiet]), RATE)
    assert len(load_wav(tmp_path / "a.wav")) == 3 * len(quiet)
    trimmed = load_wav(tmp_path / "a.wav", trim_db=40)
    assert len(loud) <= len(trimmed) <= len(loud) + 4 * 1024
    # A recording of nothing but silence has no peak to trim by.
    soundfile.write(tmp_path / "b.wav", quiet, RATE)
    assert len(load_wav(tmp_path / "b.wav", trim_db=40)) > 0


def header_without_samples(path):
    soundfile.write(path, np.zeros(0, dtype=np.float32), RATE)


def not_finite(path):
    soundfile.write(path, np.array([0.1, np.nan, 0.2], dtype=np.float32), RATE, subtype="FLOAT")


def infinite(path):
    soundfile.write(path, np.array([0.1, np.inf], dtype=np.float32), RATE, subtype="FLOAT")


def of_another_scale(path):
    soundfile.write(path, 32768 * tone(), RATE, subtype="FLOAT")


def cut_header(path):
    soundfile.write(path, tone(), RATE)
    path.write_bytes(path.read_bytes()[:20])


def cut_flac(path):
    soundfile.write(path, tone(1.0), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:60])


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "not a readable sound file"),
    "text": (lambda path: path.write_text("hello"), "not a readable sound file"),
    "junk": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a readable sound file"),
    "riff junk": (lambda path: path.write_bytes(b"RIFF" + struct.pack("<I", 1 << 31) + b"WAVEjunk"), "not a readable"),
    "cut header": (cut_header, "not a readable sound file|no samples"),
    "cut flac": (cut_flac, "not a readable sound file|no samples"),
    "no samples": (header_without_samples, "has no samples"),
    "not finite": (not_finite, "samples that are not finite"),
    "infinite": (infinite, "samples that are not finite"),
    "another scale": (of_another_scale, "samples reach 1[0-9]{4}, expected -1 to 1"),
    "folder": (lambda path: path.mkdir(), "no such sound file"),
    "nothing": (lambda path: None, "no such sound file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(case, tmp_path):
    make, message = BAD[case]
    path = tmp_path / "sound.wav"
    make(path)
    with pytest.raises(InputError, match=message) as error:
        load_wav(path, RATE)
    text = str(error.value)
    assert text.startswith(str(path)) and text.endswith(".") and "\n" not in text


def test_raw_samples_without_a_header_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\0" * 1000)
    with pytest.raises(InputError, match=r"a\.raw: not a readable sound file"):
        load_wav(tmp_path / "a.raw", RATE)


def test_slightly_more_than_full_scale_is_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", 1.2 * tone(amplitude=1.0), RATE, subtype="FLOAT")
    assert float(load_wav(tmp_path / "a.wav").abs().max()) == 1


def test_a_saved_sound_comes_back(tmp_path):
    wav = torch.from_numpy(tone())
    save_wav(tmp_path / "a.wav", wav, RATE)
    torch.testing.assert_close(load_wav(tmp_path / "a.wav", RATE), wav, atol=1 / 32767, rtol=0)
    save_wav(tmp_path / "b.wav", np.array([-3.0, 3.0]), RATE)
    assert float(load_wav(tmp_path / "b.wav").abs().max()) > 0.999
    with pytest.raises(InputError, match="folder does not exist"):
        save_wav(tmp_path / "absent" / "a.wav", wav, RATE)
    with pytest.raises(InputError, match="is a folder"):
        save_wav(tmp_path, wav, RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]
    before = os.umask(0o027)
    save_wav(tmp_path / "a.wav", wav, RATE)
    os.umask(before)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("case", CASES)
def test_mel_to_magnitude_inverts_the_mel(case):
    mel = recorded(case)[1]
    again = log_mel_of(mel_to_magnitude(mel))
    loud = mel > mel.max() - 6
    assert float((again - mel)[loud].abs().mean()) < 0.05


def log_mel_of(magnitude):
    return (mel_filters(AudioSettings()).double() @ magnitude).clamp(min=1e-5).log()


def distance(vocoder, mel):
    """Mean difference of log-mels, where there is sound, between a mel and that of its sound."""
    again = log_mel(vocoder(mel[None])[0])[:, : mel.shape[1]]
    loud = mel > mel.max() - 5
    return float((again - mel)[loud].abs().mean())


def test_griffin_lim_keeps_the_mel_and_momentum_helps():
    mel = recorded("harmonic", torch.float32)[1].float()
    plain = distance(GriffinLim(power=1.0, momentum=0.0), mel)
    fast = distance(GriffinLim(power=1.0), mel)
    assert fast < plain and fast < 0.3
    assert distance(GriffinLim(power=1.0, n_iter=1), mel) > fast


def test_griffin_lim_streams_without_gaps():
    settings = AudioSettings()
    wav = torch.sin(torch.arange(22050) * (2 * torch.pi * 220 / 22050)) * 0.3
    mel = log_mel(wav, settings)
    for sizes in ([30, 30, 27], [1] * 87, [5, 82], [87]):
        pieces = list(GriffinLim(settings, n_iter=8).stream(mel.split(sizes, 1)))
        sound = torch.cat(pieces)
        assert len(sound) == 87 * 256 and (len(pieces) > 1 or len(sizes) == 1)
        if len(sizes) == 1:
            assert torch.equal(sound, GriffinLim(settings, n_iter=8)(mel[None])[0])
        loudness = sound[1024:-1024].unfold(0, 256, 128).square().mean(1).sqrt()
        assert loudness.min() > 0.3 * loudness.median()


def test_griffin_lim_of_a_batch_is_that_of_each():
    mels = torch.stack([recorded(case)[1].float() for case in CASES])
    vocoder = load_vocoder()
    together = vocoder(mels)
    assert together.shape == (3, 61 * 256) and float(together.abs().max()) <= 1
    for wav, mel in zip(together, mels):
        torch.testing.assert_close(wav, vocoder(mel[None])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_frames", [1, 2, 4, 5])
def test_griffin_lim_of_a_few_frames(n_frames):
    wav = GriffinLim()(torch.zeros(1, 80, n_frames))
    assert wav.shape == (1, n_frames * 256) and bool(wav.isfinite().all())


def test_a_vocoder_that_does_not_exist():
    with pytest.raises(InputError, match="no such vocoder"):
        load_vocoder("melodica")
    with pytest.raises(InputError, match="a voice, not a vocoder"):
        load_vocoder(VOICES / "demo")
    with pytest.raises(InputError, match="use 'griffin_lim'"):
        load_vocoder(VOICES / "demo/model.safetensors")


def test_librosa_is_imported_by_one_process_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    def import_module(name):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(next(tmp_path.rglob("librosa.lock")), timeout=0).acquire()
        seen.append(name)

    monkeypatch.setattr(audio, "import_module", import_module)
    audio.load_librosa.__wrapped__()
    assert "librosa.core.pitch" in seen
