"""The optimisers of both networks, and weight clipping inside the critic's optimiser step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from larmor.recon.recipe.settings import OptimizerConfig
from larmor.storage.objects.errors import InputError

_CLIPPED_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def clamp_(tensors: Iterable[Tensor], clip: float) -> None:
    """Clamp every tensor to [−clip, clip] in place, without a trace in the autograd graph."""
    tensors = list(tensors)
    if tensors:
        with torch.no_grad():
            torch._foreach_clamp_min_(tensors, -clip)
            torch._foreach_clamp_max_(tensors, clip)


def clip_weights_(module: nn.Module, clip: float) -> None:
    """Clamp the clipped weights of `module` to [−clip, clip] in place: a critic has to start inside.

    Raises InputError if `clip` is not positive.
    """
    clamp_(clipped_weights(module), checked_clip(clip))


def inside(module: nn.Module, weights: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Weights for `module` by name, with copies of those that are clipped in [−clip, clip]."""
    clipped = {id(weight) for weight in clipped_weights(module)}
    names = {name for name, value in module.state_dict(keep_vars=True).items() if id(value) in clipped}
    return {name: value.clamp(-clip, clip) if name in names else value for name, value in weights.items()}


def clipped_weights(module: nn.Module) -> list[Tensor]:
    """The weights that the clipping constant c of eq. (4) holds: those of convolutions and dense layers.

    Biases do not change a slope. The scale of a normalisation does, but if it is clamped to 0.01 every residual
    branch vanishes and the critic tells nothing apart any more (docs/methods.md).
    """
    return [layer.weight for layer in module.modules() if isinstance(layer, _CLIPPED_LAYERS)]


def parameter_groups(module: nn.Module, clip: float | None) -> list[dict[str, Any]]:
    """The parameters of `module` for `build_optimizer`: with `clip` the clipped weights and, apart, the rest."""
    everything = list(module.parameters())
    if clip is None:
        return [{"params": everything}]
    inside = {id(weight) for weight in clipped_weights(module)}
    groups = [
        {"params": [parameter for parameter in everything if (id(parameter) in inside) == clipped], "clipped": clipped}
        for clipped in (True, False)
    ]
    return [group for group in groups if group["params"]]


def checked_clip(clip: float) -> float:
    if not 0 < clip < float("inf"):
        raise InputError(f"weight clipping to ±{clip}: the constant must be a positive number, for example 0.01")
    return clip


class _ClippingStep(torch.optim.Optimizer):
    """Mixed in before a torch optimiser: clamps what the groups marked `clipped` hold after each update.

    ZeRO puts its float32 master partitions there (one sub-group at a time in stage 3), so clamping
    here is exact in every stage and costs no communication. Clamping from outside is not: the
    working weights are copied from the masters inside the engine's step.
    """

    clip: float

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = super().step(closure)
        for group in self.param_groups:
            if group["clipped"]:
                clamp_(group["params"], self.clip)
        return loss


class ClippedRMSprop(_ClippingStep, torch.optim.RMSprop):
    """RMSprop followed by weight clipping."""


class ClippedAdam(_ClippingStep, torch.optim.Adam):
    """Adam followed by weight clipping."""


class ClippedAdamW(_ClippingStep, torch.optim.AdamW):
    """AdamW followed by weight clipping."""


_KINDS: dict[str, tuple[type[torch.optim.Optimizer], type[torch.optim.Optimizer]]] = {
    "rmsprop": (torch.optim.RMSprop, ClippedRMSprop),
    "adam": (torch.optim.Adam, ClippedAdam),
    "adamw": (torch.optim.AdamW, ClippedAdamW),
}
"""By name: the optimiser as it is, and with weight clipping."""


def build_optimizer(
    parameters: Iterable[Any],
    config: OptimizerConfig,
    clip: float | None = None,
    recorded_on: torch.device | None = None,
) -> torch.optim.Optimizer:
    """An optimiser over `parameters`: tensors, or parameter groups such as those of `parameter_groups`.

    `recorded_on` is the GPU of a CUDA graph that its step is to be part of: learning rate and counters lie there.

    With `clip`, every `step()` ends with the parameters of each group whose `clipped` is not False in
    [−clip, clip]: the Lipschitz constraint of the paper's eq. (4). Raises InputError if `clip` is not positive.
    """
    kind = _KINDS[config.name][clip is not None]
    rmsprop = config.name == "rmsprop"
    own: dict[str, Any] = {"alpha": config.alpha} if rmsprop else {"betas": (config.beta1, config.beta2)}
    rate = config.learning_rate if recorded_on is None else torch.tensor(config.learning_rate, device=recorded_on)
    own["capturable"] = recorded_on is not None
    shared: dict[str, Any] = {"lr": rate, "eps": config.epsilon, "weight_decay": config.weight_decay}
    optimizer = kind(parameters, **shared, **own)
    if isinstance(optimizer, _ClippingStep):
        assert clip is not None
        optimizer.clip = checked_clip(clip)
        for group in optimizer.param_groups:
            group.setdefault("clipped", True)
    return optimizer
