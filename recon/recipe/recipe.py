"""Everything that one worker's training needs: the sections of an experiment that belong to this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from larmor.recon.recipe.decoding import DECODERS, VALIDATED, DecodingConfig
from larmor.recon.recipe.init_from import InitFrom
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.metric import check_metric
from larmor.recon.recipe.own_code import Code, CodeConfig, OneOf
from larmor.recon.recipe.own_name import is_own, short_name
from larmor.recon.recipe.settings import (
    UNGUIDED,
    AugmentConfig,
    CriticConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
)
from larmor.recon.recipe.signal import SignalConfig
from larmor.recon.recipe.systems import SYSTEMS, System, merged
from larmor.storage.loading.config import DataConfig

_OF_RECONSTRUCTION = ("augment", "signal", "mask", "generator", "critic", "loss")
SECTIONS_OF_A_SYSTEM = (*_OF_RECONSTRUCTION, "generator_optimizer", "critic_optimizer", "training", "data")
"""What a system of one's own may have defaults for."""
MetricName = Annotated[str, AfterValidator(check_metric)]
OwnMetric = Annotated[str, OneOf((), "larmor.metrics")]


class TrainingConfig(BaseModel):
    """Counts are generator steps. One step uses `critic.steps` global batches; the generator sees the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(10_000, ge=1, description="generator steps of the whole training")
    global_batch_size: int = Field(
        16, ge=1, description="slices, or stacks of data.stack, per optimiser step, over all workers"
    )
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    schedule: Literal["constant", "cosine", "halving", "decay"] = Field(
        "constant", description="how both learning rates change with the steps"
    )
    halve_every: int = Field(1000, ge=1, description="steps after which `halving` halves the learning rates")
    decay_every: int = Field(
        1000, ge=1, description="steps after which `decay` multiplies the learning rates with decay_factor"
    )
    decay_factor: float = Field(0.95, gt=0, le=1, description="what `decay` multiplies the learning rates with")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the averaged generator, which is evaluated and pulled, such as 0.999; 0: none",
    )
    early_stop: int | None = Field(
        None, ge=1, description="stop after so many validations without a better best_metric; null: never"
    )
    largest_critic_loss: float = Field(1e4, gt=0, description="a critic beyond this has diverged: training stops")
    backend: Literal["auto", "deepspeed", "plain"] = Field(
        "auto", description="what trains: DeepSpeed or plain PyTorch; auto: DeepSpeed where it is installed"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="how much DeepSpeed's ZeRO divides among the workers: 0 is nothing, 3 is everything"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="numbers that the networks compute with")
    channels_last: bool = Field(False, description="memory layout of the networks; not faster everywhere: measure it")
    compile: bool = Field(False, description="torch.compile both networks; needs a C++ compiler, takes a minute")
    cuda_graphs: bool = Field(
        False,
        description="on a GPU, replay whole steps as CUDA graphs: faster wherever launching kernels is what takes "
        "the time; one worker with backend=plain",
    )
    log_every: int = Field(20, ge=1, description="steps between two reports")
    validate_every: int = Field(500, ge=1, description="steps between two validations")
    checkpoint_every: int = Field(500, ge=1, description="steps between two checkpoints")
    validation_slices: int | None = Field(None, ge=1, description="evenly spaced slices of the validation; null: all")
    validation_images: int = Field(
        3, ge=0, le=64, description="slices that TensorBoard and trackers show at each validation; 0: none"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept beside the best ones")
    keep_best: int = Field(1, ge=1, description="best checkpoints kept, by best_metric")
    best_metric: MetricName = Field("psnr", description="validation metric whose best checkpoints are kept")
    metrics: tuple[OwnMetric, ...] = Field(
        (), description="validation metrics of your own beside Larmor's, each MODULE:NAME; best_metric may be another"
    )

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """MODULE:NAME of each metric of one's own."""
        return tuple(dict.fromkeys(name for name in (self.best_metric, *self.metrics) if is_own(name)))


class Recipe(BaseModel):
    """Data, physics, networks, losses and schedule of a training, without the cluster it runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: Annotated[str, OneOf(get_args(System), "larmor.systems")] = Field(
        "gan_resnet50",
        description="which published system the keys that are not given are taken from; MODULE:NAME is one of your own",
    )
    seed: int = Field(0, ge=0, description="of initial weights, order of slices and augmentation")
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    signal: SignalConfig = SignalConfig()
    mask: MaskConfig = MaskConfig()
    generator: GeneratorConfig = GeneratorConfig()
    critic: CriticConfig = CriticConfig()
    loss: LossConfig = LossConfig()
    generator_optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    init_from: InitFrom | None = Field(
        None, description="what the training starts from, a run or a model; null: random weights"
    )
    code: Code = Field(CodeConfig(), description="your own code, which MODULE:NAME leads to; travels to the workers")
    decoding: DecodingConfig | None = Field(None, description="of system=tigan alone, whose task is decoding")

    @property
    def title(self) -> str:
        """What stands in tables: the system, or a generator of one's own; and whether it sees a guide."""
        name = short_name(self.generator.name if is_own(self.generator.name) else self.system)
        return f"{name} with guide" if self.signal.guide else name

    @property
    def own_parts(self) -> dict[str, str]:
        """Key → MODULE:NAME, of each part that is not Larmor's."""
        system = {"system": self.system} if is_own(self.system) else {}
        metrics = {f"training.metrics.{number}": name for number, name in enumerate(self.training.own_metrics)}
        return system | self.parts_of_model | metrics

    @property
    def parts_of_model(self) -> dict[str, str]:
        """Those of them that a model in use has; its system and metrics belong to the training alone."""
        named = {
            "generator.name": self.generator.name,
            "critic.name": self.critic.name,
            "loss.content": self.loss.content,
            "mask.kind": self.mask.kind,
        }
        return {key: name for key, name in named.items() if is_own(name)}

    @model_validator(mode="before")
    @classmethod
    def _keys_of_the_system(cls, given: Any) -> Any:
        systems = {**SYSTEMS, **DECODERS}
        if isinstance(given, Mapping) and is_own(str(given.get("system", ""))) and "generator" not in given:
            raise ValueError(
                f"system={given['system']}: its defaults are read with an experiment's file; use larmor.load_experiment"
            )
        if not isinstance(given, Mapping) or given.get("system", "gan_resnet50") not in systems:
            return given
        return merged(systems[given.get("system", "gan_resnet50")], given)

    @model_validator(mode="after")
    def _one_task(self) -> Recipe:
        if self.decoding is None and self.system not in DECODERS:
            return self
        if self.decoding is None or self.system not in DECODERS:
            raise ValueError(f"the section decoding belongs to system={', '.join(DECODERS)}, and to no other system")
        if self.training.best_metric not in VALIDATED:
            raise ValueError(
                f"training.best_metric={self.training.best_metric}: a decoding is validated by {', '.join(VALIDATED)}; "
                "choose one of them"
            )
        if self.training.metrics:
            raise ValueError(f"training.metrics does not work with system={self.system}; leave it out")
        idle = [name for name in _OF_RECONSTRUCTION if getattr(self, name) != Recipe.model_fields[name].default]
        if idle:
            raise ValueError(
                f"{', '.join(idle)}: of no use to system={self.system}, which decodes and reconstructs nothing; its "
                "networks and losses are in the section decoding"
            )
        for name, off in (("ema_decay", 0.0), ("cuda_graphs", False), ("compile", False)):
            if getattr(self.training, name) != off:
                raise ValueError(f"training.{name} does not work with system={self.system}; leave it out")
        if self.init_from is not None:
            raise ValueError(f"init_from does not work with system={self.system}; leave it out")
        return self

    @model_validator(mode="after")
    def _initial_weights_have_a_place(self) -> Recipe:
        if self.init_from is None:
            return self
        if self.init_from.critics and not self.loss.critics:
            raise ValueError("init_from.critics=true, but loss.adversarial=none has no critic; set it to false")
        if self.init_from.averages and not self.training.ema_decay:
            raise ValueError(
                "init_from.averages=true, but training.ema_decay=0 keeps no average; set it, such as to 0.999, or "
                "init_from.averages=false"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        stage = self.training.zero_stage
        if self.training.ema_decay and stage == 3:
            raise ValueError(
                "training.ema_decay needs whole weights on every worker; set training.zero_stage=2 or lower"
            )
        if (
            self.critic.lipschitz in ("gradient_penalty", "spectral_norm")
            and self.loss.adversarial != "none"
            and stage == 3
        ):
            raise ValueError(
                f"critic.lipschitz={self.critic.lipschitz} works on whole weights; set training.zero_stage=2 or lower"
            )
        if self.generator.name == "idpcnn" and (stage == 3 or self.loss.adversarial != "none"):
            raise ValueError(
                "generator.name=idpcnn trains a denoiser, and its images are done one by one; set "
                "loss.adversarial=none and training.zero_stage=2 or lower"
            )
        if self.generator.name == "idpcnn" and not self.signal.measured:
            raise ValueError(
                "generator.name=idpcnn puts measured points back, which signal.coils=rss has lost; set "
                "signal.coils=sense"
            )
        if self.training.compile and self.critic.lipschitz == "gradient_penalty":
            raise ValueError(
                "training.compile cannot differentiate twice, which critic.lipschitz=gradient_penalty needs; "
                "set training.compile=false"
            )
        if self.training.cuda_graphs and (self.training.backend != "plain" or self.training.compile):
            raise ValueError(
                "training.cuda_graphs records the steps of one worker without DeepSpeed or torch.compile; set "
                "training.backend=plain, training.zero_stage=0 and training.compile=false"
            )
        if self.signal.mode == "pet":
            self._check_pet()
        if self.generator.data_consistency != "none" and not self.signal.measured:
            raise ValueError(
                f"generator.data_consistency={self.generator.data_consistency} compares with the measured "
                "k-space, which signal.coils=rss has lost; set signal.coils=sense"
            )
        if self.generator.start.enabled and not self.signal.measured:
            raise ValueError(
                f"generator.start.method={self.generator.start.method} solves for the image behind the measured "
                "k-space, which signal.coils=rss has lost; set signal.coils=sense, or generator.start.method=none"
            )
        return self

    def _check_pet(self) -> None:
        """Raises `ValueError` for what works on k-space, which PET does not have."""
        for name, off in (("data_consistency", "none"), ("start.method", "none")):
            value = self.generator.start.method if name == "start.method" else self.generator.data_consistency
            if value != off:
                raise ValueError(
                    f"generator.{name}={value} works on measured k-space, and signal.mode=pet has none; set "
                    f"generator.{name}=none, as system=drgan does"
                )
        if self.loss.critic_sees == "measurement":
            raise ValueError(
                "loss.critic_sees=measurement needs k-space, and signal.mode=pet has none; set it to image"
            )
        self.augment.check_modality(self.signal.modality)
        if self.mask != MaskConfig():
            raise ValueError("mask: of no use with signal.mode=pet, which has no k-space; leave the section out")

    @model_validator(mode="after")
    def _images_have_what_is_used(self) -> Recipe:
        if self.generator.name == "deepcomplex" and not self.signal.keeps_coils:
            raise ValueError(
                "generator.name=deepcomplex works on the complex images of all coils, with their phase; "
                f"signal.mode={self.signal.mode}, signal.coils={self.signal.coils} gives it others: set "
                "signal.mode=complex and signal.coils=all"
            )
        if self.loss.content == "complex_l1" and self.signal.channels == 1:
            raise ValueError(
                "loss.content=complex_l1 compares complex images, and those of "
                f"signal.mode={self.signal.mode}, signal.coils={self.signal.coils} are magnitudes; set "
                "signal.mode=complex with signal.coils=all or sense, or loss.content=l1"
            )
        if self.generator.start.enabled and self.signal.keeps_coils:
            raise ValueError(
                f"generator.start.method={self.generator.start.method} needs the sensitivity maps of the coils, which "
                "signal.coils=all does not read; set signal.coils=sense, or generator.start.method=none"
            )
        return self

    @model_validator(mode="after")
    def _network_takes_a_guide(self) -> Recipe:
        name = self.generator.name
        if self.signal.guide and (is_own(name) or name in UNGUIDED):
            why = UNGUIDED.get(name, "is called with the image and the measurement alone")
            raise ValueError(
                f"signal.guide=true, but generator.name={name} {why}; set signal.guide=false, or a generator.name "
                f"other than {', '.join(UNGUIDED)} and one of your own"
            )
        return self

    @model_validator(mode="after")
    def _frames_belong_together(self) -> Recipe:
        if self.data.stack > 1:
            return self
        if self.generator.name == "conv_lstm":
            raise ValueError(
                "generator.name=conv_lstm joins the frames of a stack, and data.stack=1 leaves each alone; set "
                "data.stack=8"
            )
        if self.generator.start.shares_views:
            raise ValueError(
                f"generator.start.method={self.generator.start.method} takes what an image lacks from others of its "
                "stack, and data.stack=1 leaves each alone; set data.stack=8, or generator.start.method=none"
            )
        return self

    @model_validator(mode="after")
    def _measurements_differ(self) -> Recipe:
        if self.loss.critic_sees != "measurement":
            return self
        if self.signal.channels > 1:
            raise ValueError("loss.critic_sees=measurement works on magnitude images; set signal.mode=magnitude")
        if not self.mask.per_slice or self.mask.kind == "file" or self.mask.sampling_ratio == 1:
            # with measured points put back, real and fake would be the same image
            raise ValueError(
                "loss.critic_sees=measurement compares what the masks of two slices leave, and all slices have one "
                "mask here; set mask.per_slice=true, a mask.kind other than file, and a mask.sampling_ratio below 1"
            )
        return self

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> Recipe:
        batch, parts = self.training.global_batch_size, self.training.gradient_accumulation
        if batch % parts:
            raise ValueError(
                f"training.global_batch_size={batch} does not divide into training.gradient_accumulation={parts} "
                f"micro-batches; use a multiple of {parts}"
            )
        return self

    @property
    def critic_channels(self) -> int:
        """Channels of the images that critics see."""
        return 1 if self.loss.critic_sees == "measurement" else self.signal.channels

    def micro_batch_size(self, world_size: int) -> int:
        """Slices, or stacks, of one forward on one rank.

        Raises `ValueError` if the batch does not divide evenly, or leaves a single slice where two are compared.
        """
        batch, parts = self.training.global_batch_size, self.training.gradient_accumulation
        if batch % (world_size * parts):
            raise ValueError(
                f"training.global_batch_size={batch} is not divisible by {world_size} workers × {parts} micro-batches; "
                f"use a multiple of {world_size * parts}"
            )
        size = batch // (world_size * parts)
        if size == 1 and self.loss.critic_sees == "measurement":
            raise ValueError(
                f"training.global_batch_size={batch} leaves one slice for each of {world_size} workers × {parts} "
                "micro-batches, and loss.critic_sees=measurement needs the mask of another slice beside it; use at "
                f"least {2 * batch}"
            )
        return size


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """What the learning rate of step `step` (from 0) is multiplied by; a pure function."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "halving":
        return 0.5 ** (step // config.halve_every)
    if config.schedule == "decay":
        return float(config.decay_factor ** (step // config.decay_every))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
