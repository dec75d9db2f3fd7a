"""Sound as bytes of a file format, for standard output and for clients of the server.

Letters: T_samples samples.
"""

import io
import struct

import numpy as np
import soundfile

from flowtron.audio import resampled
from flowtron.errors import InputError

# soundfile's format and subtype, and the media type. pcm is bare samples: 16 bit, mono, little-endian.
FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "pcm": ("", "", "audio/pcm"),
}
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # Hz


def pcm(wav: np.ndarray) -> bytes:
    """Return wav (T_samples,) in [-1, 1] as 16-bit little-endian samples."""
    return (np.asarray(wav, dtype=np.float32).clip(-1, 1) * 32767).astype("<i2").tobytes()


def encode(wav: np.ndarray, sample_rate: int, format: str) -> bytes:
    """Return wav (T_samples,) in [-1, 1] as a file of a format.

    Raises:
        InputError: there is no such format, or libsndfile was built without it.
    """
    if format not in FORMATS:
        raise InputError(f"the format {format!r} is not one of {', '.join(FORMATS)}; choose one of them.")
    if format == "pcm":
        return pcm(wav)
    container, subtype, _ = FORMATS[format]
    if not soundfile.check_format(container, subtype):
        raise InputError(f"this machine's libsndfile writes no {format}; choose another format, such as wav.")
    if format == "opus" and sample_rate not in OPUS_RATES:
        rate = next(rate for rate in (*OPUS_RATES, OPUS_RATES[-1]) if rate >= min(sample_rate, OPUS_RATES[-1]))
        wav = resampled(wav, sample_rate, rate)
        sample_rate = rate
    file = io.BytesIO()
    samples = np.asarray(wav, dtype=np.float32).clip(-1, 1)
    with soundfile.SoundFile(
        file, "w", samplerate=sample_rate, channels=1, format=container, subtype=subtype
    ) as writer:
        # In parts: libsndfile's encoder of Vorbis and Opus overflows its stack on long sounds.
        for start in range(0, len(samples), 1 << 16):
            writer.write(samples[start : start + (1 << 16)])
    return file.getvalue()


def wav_header(sample_rate: int) -> bytes:
    """Return the header of a 16-bit mono wav whose length is not known yet, to be followed by `pcm`."""
    unknown = 0xFFFFFFFF
    data = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16
    )
    return data + struct.pack("<4sI", b"data", unknown)
