"""What an experiment says of networks, losses, optimisers and augmentation. Imports no torch: who starts a training has
no other use for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from larmor.recon.recipe.critic_role import CriticRole, Sight
from larmor.recon.recipe.own_code import OneOf
from larmor.recon.recipe.own_name import is_own

Norm = Literal["group", "instance", "none"]
Content = Annotated[str, OneOf(("normalized_root_mse", "mse", "l1", "complex_l1", "dssim"), "larmor.losses")]
_WEIGHT = 1e-4
_OPTIONS = "of a network of your own: what it is made with besides the number of channels"


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if options and not is_own(name):
        raise ValueError(
            f"options={dict(options)} are for a network of your own, and name={name} is Larmor's; leave options out, "
            "or set name=MODULE:NAME"
        )


class StartConfig(BaseModel):
    """The image that the network starts from in place of the zero-filled one: compressed sensing, on the device, or
    what the frames of a stack lend each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal[
        "none", "wavelet", "total_variation", "alternating", "split_bregman", "view_sharing", "causal_view_sharing"
    ] = Field(
        "none",
        description="what is sparse: wavelets, differences (total variation), both in turn, or both at once with the "
        "measured points held (split_bregman: 25 iterations do what 100 of the others do); or view sharing: each "
        "point of k-space from the frame nearest in time, or the last one, that measured it",
    )
    iterations: int = Field(100, ge=1, description="iterations of compressed sensing for each image")
    weight: float = Field(
        _WEIGHT,
        gt=0,
        description="weight λ of the sparsity, for images scaled to [0, 1]; split_bregman has none",
        allow_inf_nan=False,
    )
    cache_bytes: int = Field(
        2**30,
        ge=0,
        description="memory, in bytes, for the starts of a training's slices, on each worker; kept where mask and "
        "images are the same in every epoch",
    )
    disk_cache_bytes: int = Field(
        2**30,
        ge=0,
        description="disk, in bytes for each machine, for the same starts: its workers, later trainings and the trials "
        "of a sweep share them; 0: none",
    )

    @model_validator(mode="after")
    def _weight_of_a_compromise(self) -> StartConfig:
        if self.method == "split_bregman" and self.weight != _WEIGHT:
            raise ValueError(
                f"weight={self.weight:g} weighs sparsity against the measured points, which method=split_bregman holds "
                "exactly; leave weight out, or set method=alternating"
            )
        return self

    @property
    def enabled(self) -> bool:
        return self.method != "none"

    @property
    def shares_views(self) -> bool:
        return self.method in ("view_sharing", "causal_view_sharing")


UNGUIDED = {
    "idpcnn": "denoises images of any mask, one by one",
    "deepcomplex": "multiplies complex numbers, and a guide is a magnitude",
}
"""Networks that take no second contrast, and why; all others of Larmor's do."""


class GeneratorConfig(BaseModel):
    """The network that reconstructs, what it starts from, and data consistency around it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[
        str,
        OneOf(
            (
                "gan_resnet50",
                "dagan",
                "unet",
                "residual_unet",
                "drgan",
                "fda",
                "dilated",
                "similar_patches",
                "idpcnn",
                "deepcomplex",
                "conv_lstm",
                "sat_net",
            ),
            "larmor.generators",
        ),
    ] = Field("gan_resnet50", description="the network that reconstructs; MODULE:NAME is one of your own")
    width: int = Field(64, ge=4, description="channels of the first layer; the system's default is as published")
    norm: Norm = Field("group", description="normalisation layers; none of them mixes the images of a batch")
    subbands: Literal["none", "wavelet"] = Field("none", description="work on the four Haar subbands")
    levels: int = Field(3, ge=1, le=6, description="of residual_unet: sizes that it works at, each half of the last")
    attention_from_level: int = Field(
        0, ge=0, le=4, description="of sat_net: its finest size with self-attention; 0 is full resolution, 4 is none"
    )
    start: StartConfig = StartConfig()
    data_consistency: Literal["none", "soft", "hard"] = Field(
        "none", description="put the measured points back: mixed with the network's (soft) or in their place (hard)"
    )
    iterations: int = Field(
        1, ge=1, description="how often network and data consistency alternate with the same weights (MoDL)"
    )
    cascades: int = Field(1, ge=1, description="how often they alternate with separate weights (deep cascade)")

    turns: int = Field(100, ge=1, description="of idpcnn: largest number of denoisings of an image")
    options: Mapping[str, Any] = Field(default_factory=dict, description=_OPTIONS)

    @model_validator(mode="after")
    def _options_of_own_networks(self) -> GeneratorConfig:
        _check_options(self.name, self.options)
        return self

    @model_validator(mode="after")
    def _has_its_own_consistency(self) -> GeneratorConfig:
        if self.name == "idpcnn" and (self.data_consistency != "none" or self.start.enabled):
            raise ValueError(
                "name=idpcnn puts the measured points back by itself and starts from the zero-filled image; set "
                "data_consistency=none and start.method=none"
            )
        return self

    @model_validator(mode="after")
    def _turns_need_consistency(self) -> GeneratorConfig:
        for name in ("iterations", "cascades"):
            if getattr(self, name) > 1 and self.data_consistency == "none":
                raise ValueError(
                    f"{name}={getattr(self, name)} alternates with data consistency; set data_consistency=hard or soft"
                )
        return self

    @model_validator(mode="after")
    def _subbands_of_the_resnet(self) -> GeneratorConfig:
        if self.subbands != "none" and self.name != "gan_resnet50":
            raise ValueError(f"subbands={self.subbands} belongs to name=gan_resnet50, not to {self.name}")
        return self

    @model_validator(mode="after")
    def _width_of_dense_blocks(self) -> GeneratorConfig:
        if self.name == "fda" and self.width % 4:
            raise ValueError(
                f"width={self.width} does not divide by 4, as the four steps of a dense block of name=fda do; use "
                f"{self.width + -self.width % 4}"
            )
        return self


class CriticConfig(BaseModel):
    """The network that tells reconstructions from targets, and how its slope is held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, OneOf(("resnet50", "dagan"), "larmor.critics")] = Field(
        "resnet50", description="the network of the critic; MODULE:NAME is one of your own"
    )
    width: int = Field(64, ge=4, description="channels of the first layer; 64 is as published")
    norm: Norm = Field("group", description="normalisation layers; none of them mixes the images of a batch")
    steps: int = Field(5, ge=1, description="critic steps per generator step")
    lipschitz: Literal["weight_clipping", "gradient_penalty", "spectral_norm", "none"] = Field(
        "weight_clipping", description="how the slope of the critic is held"
    )
    clip: float | None = Field(
        0.01, gt=0, description="the clipping constant c of eq. (4), of weight_clipping alone; null: no clipping"
    )
    penalty_weight: float = Field(
        10.0, gt=0, description="weight of the penalty, of gradient_penalty alone", allow_inf_nan=False
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description=_OPTIONS)

    @model_validator(mode="after")
    def _options_of_own_networks(self) -> CriticConfig:
        _check_options(self.name, self.options)
        return self

    @property
    def applied_clip(self) -> float | None:
        """What weights are clamped to; None where another way, or none, holds the slope."""
        return self.clip if self.lipschitz == "weight_clipping" else None


class LossConfig(BaseModel):
    """Eq. (9): L_G = L_A + a·L_N + b·L_F. The paper gives no a and b; 15 and 0.1 follow DAGAN.

    `content` takes the place of L_N in other systems. With `critic_sees: measurement` nothing is compared with the
    target: the critic tells zero-filled images of real measurements from those of the reconstruction undersampled
    anew (Cole et al., unsupervised), and content and frequency terms are off. With `critic_sees: residual` the critic
    sees what the generator adds to the zero-filled image; `residual_critic` is a second critic that does so beside
    the first, as Du et al. have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adversarial: Literal["wasserstein", "bce", "none"] = Field(
        "wasserstein", description="what critic and generator play for; none: no critic"
    )
    critic_sees: Sight = Field(
        "image",
        description="what the critic is shown: images, measurements of them (unsupervised), or what the generator adds "
        "to the zero-filled image (residual)",
    )
    residual_critic: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="weight of a second critic, which sees the residual map; null: no second critic",
    )
    content: Content = Field("normalized_root_mse", description="L_N of eq. (9); MODULE:NAME is a loss of your own")
    a: float = Field(15.0, ge=0, description="weight of the content loss, by default eq. (7)", allow_inf_nan=False)
    b: float = Field(0.1, ge=0, description="weight of the frequency loss, eq. (8)", allow_inf_nan=False)
    frequency: Literal["magnitude", "complex"] = Field(
        "magnitude", description="what of the Fourier transform the frequency loss compares"
    )

    @property
    def content_term(self) -> str:
        """What the content loss is called in reports."""
        return self.content.rpartition(":")[2]

    @property
    def critics(self) -> tuple[CriticRole, ...]:
        """The critics, in the order of their updates; none without an adversarial loss."""
        if self.adversarial == "none":
            return ()
        first = CriticRole("", self.critic_sees, 1.0)
        return (
            (first,)
            if self.residual_critic is None
            else (first, CriticRole("_residual", "residual", self.residual_critic))
        )

    @model_validator(mode="after")
    def _second_critic_beside_a_first(self) -> LossConfig:
        if self.residual_critic is not None and (self.adversarial == "none" or self.critic_sees != "image"):
            raise ValueError(
                f"residual_critic={self.residual_critic:g} is the second critic beside one that sees images, but "
                f"adversarial={self.adversarial} and critic_sees={self.critic_sees}; set adversarial=wasserstein and "
                "critic_sees=image, or residual_critic=null"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> LossConfig:
        if self.critic_sees == "measurement" and self.adversarial == "none":
            raise ValueError("critic_sees=measurement learns from a critic alone; set adversarial=wasserstein or bce")
        if self.adversarial == "none" and self.a == 0 and self.b == 0:
            raise ValueError("adversarial=none with a=0 and b=0 leaves nothing to minimise; raise a or b")
        return self


class OptimizerConfig(BaseModel):
    """Settings of one network's optimiser.

    The default is the original WGAN's (RMSprop, 5e-5); DAGAN used Adam with 1e-4 and beta1 0.5.
    `alpha` belongs to RMSprop alone, `beta1` and `beta2` to Adam and AdamW. AdamW (Loshchilov and Hutter, 2019) takes
    `weight_decay` from the weights themselves; with the others it is part of the gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rmsprop", "adam", "adamw"] = Field("rmsprop", description="the optimiser")
    learning_rate: float = Field(default=5e-5, gt=0, description="step size, before training.schedule changes it")
    beta1: float = Field(default=0.5, ge=0, lt=1, description="decay of the mean gradient, of adam and adamw")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the mean squared gradient, of adam and adamw")
    alpha: float = Field(default=0.99, ge=0, lt=1, description="decay of the mean squared gradient, of rmsprop alone")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the denominator, against division by zero")
    weight_decay: float = Field(default=0.0, ge=0, description="weight of the L2 penalty; adamw: decoupled")
    clip_gradient_norm: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="largest L2 norm of the network's whole gradient at an update; a longer one is scaled down to it; "
        "null: no limit",
    )


class AugmentConfig(BaseModel):
    """How far an image is moved and changed at random, before its k-space is computed; by default not at all.

    DAGAN's own settings are flip 0.5, rotation 10, shift 0.1 and zoom 0.1, next to elastic deformation and brightness.
    `elastic`, `contrast` and `bias` are MONAI's Rand2DElastic, RandAdjustContrast and RandBiasField. A factor for a
    whole image would change nothing: networks see images in units of their largest magnitude.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(0.0, ge=0, le=1, description="probability of a left-right flip")
    rotation: float = Field(0.0, ge=0, le=180, description="largest angle either way, in degrees")
    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift either way, as a fraction of height and width")
    zoom: float = Field(0.0, ge=0, le=0.5, description="largest change of size: 0.1 for a factor of 0.9 to 1.1")
    elastic: float = Field(
        0.0,
        ge=0,
        le=0.02,
        description="largest standard deviation of the displacement of control points, 8 along the longer side, as a "
        "fraction of that side, such as 0.01; beyond 0.02 many images would fold",
    )
    contrast: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="largest change of the exponent γ that the magnitude is raised to: 0.3 for 0.7 to 1.3",
    )
    bias: float = Field(
        0.0,
        ge=0,
        le=1,
        description="bias field: largest coefficient, either way, of the polynomial of degree 3 (Legendre, over the "
        "image) whose exponential multiplies the magnitude, such as 0.1",
    )

    @property
    def enabled(self) -> bool:
        """Whether any image is changed."""
        return self.moves or self.changes_intensity

    def check_modality(self, modality: str) -> None:
        """Raises `ValueError` for what makes no sense with `signal.modality`."""
        if modality == "pet" and self.changes_intensity:
            raise ValueError(
                f"augment.contrast={self.contrast:g}, augment.bias={self.bias:g} change magnitudes of MRI, and "
                "signal.mode=pet has activity and attenuation, which belong together; set both to 0"
            )

    @property
    def moves(self) -> bool:
        """Whether anything of an image is elsewhere then."""
        return self.flip > 0 or self.interpolates or self.elastic > 0

    @property
    def changes_intensity(self) -> bool:
        """Whether magnitudes are changed where they are."""
        return self.contrast > 0 or self.bias > 0

    @property
    def interpolates(self) -> bool:
        """Whether images are moved by parts of a pixel; a flip alone moves whole ones."""
        return self.rotation > 0 or self.shift > 0 or self.zoom > 0
