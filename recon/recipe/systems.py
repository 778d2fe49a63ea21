"""The compared systems by name: what each puts in place of an experiment's defaults. `tigan`, which decodes, is in
`decoding.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

System = Literal[
    "gan_resnet50",
    "gan_resnet50_dc",
    "gan_resnet50_modl",
    "larmor",
    "dagan",
    "wdagan",
    "unet",
    "unet_dssim",
    "unsupervised_gan",
    "drgan",
    "rician_cnn",
    "idpcnn",
    "fda_cnn",
    "dilated_gan",
    "deepcomplexmri",
    "tigan",
    "conv_lstm",
    "sat_net",
]

_ADAM = {"name": "adam", "learning_rate": 1e-4, "beta1": 0.5}
_ALONE = {"name": "adam", "learning_rate": 1e-3, "beta1": 0.9}  # of a generator without a critic

SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    # the paper's: Wasserstein loss, weight clipping, content and frequency terms
    "gan_resnet50": {},
    # the same with the measured points put back
    "gan_resnet50_dc": {"generator": {"data_consistency": "hard"}},
    # that by turns three times, with the same weights, as Aggarwal et al. 2019 do
    "gan_resnet50_modl": {"generator": {"data_consistency": "hard", "iterations": 3}},
    # ours: compressed sensing as the start, a small U-Net at full resolution, data consistency
    "larmor": {
        "generator": {
            "name": "residual_unet",
            "width": 16,
            "levels": 4,
            "norm": "none",
            "start": {"method": "alternating"},
            "data_consistency": "hard",
        },
        "loss": {"frequency": "complex"},
        "generator_optimizer": {"name": "adam", "learning_rate": 1e-3, "beta1": 0.9},
    },
    # Yang et al. 2018, without the perceptual term, which needs pretrained weights
    "dagan": {
        "generator": {"name": "dagan"},
        "critic": {"name": "dagan", "steps": 1, "lipschitz": "none"},
        "loss": {"adversarial": "bce", "a": 15.0, "b": 0.1},
        "generator_optimizer": _ADAM,
        "critic_optimizer": _ADAM,
    },
    # Jiang et al. 2019: DAGAN's networks, Wasserstein loss
    "wdagan": {
        "generator": {"name": "dagan"},
        "critic": {"name": "dagan"},
        "loss": {"adversarial": "wasserstein", "a": 15.0, "b": 0.1},
        "generator_optimizer": _ADAM,
    },
    # Hyun et al. 2018: mean squared error, k-space correction
    "unet": {
        "generator": {"name": "unet", "data_consistency": "hard"},
        "loss": {"adversarial": "none", "content": "mse", "a": 1.0, "b": 0.0},
        "generator_optimizer": {"name": "rmsprop", "learning_rate": 1e-3},
    },
    "unet_dssim": {
        "generator": {"name": "unet"},
        "loss": {"adversarial": "none", "content": "dssim", "a": 1.0, "b": 0.0},
        "generator_optimizer": {"name": "adam", "learning_rate": 1e-3},
    },
    # Cole et al. 2020: no ground truth; the critic compares measurements
    "unsupervised_gan": {
        "generator": {"name": "unet", "data_consistency": "hard"},
        "critic": {"lipschitz": "gradient_penalty"},
        "loss": {"adversarial": "wasserstein", "critic_sees": "measurement", "a": 0.0, "b": 0.0},
        "mask": {"per_slice": True},
        "generator_optimizer": _ADAM,
        "critic_optimizer": _ADAM,
    },
    # Du et al. 2020, published for PET: a residual map, judged by a critic of its own beside the image's
    "drgan": {
        "generator": {"name": "drgan"},
        # no norm: it would make the score of a small residual map as steep as the map is small
        "critic": {"steps": 1, "lipschitz": "gradient_penalty", "norm": "none"},
        "loss": {"adversarial": "wasserstein", "residual_critic": 1.0, "a": 100.0, "b": 0.0},
        "generator_optimizer": _ADAM,
        "critic_optimizer": _ADAM,
    },
    # after Manimala et al. 2021: noise in the measurement, groups of similar patches; the level is never told
    "rician_cnn": {
        "generator": {"name": "similar_patches", "data_consistency": "soft", "iterations": 2},
        "signal": {"noise": (0.0, 0.1)},
        "loss": {"adversarial": "none", "content": "mse", "a": 1.0, "b": 0.0},
        "generator_optimizer": _ALONE,
        "training": {"schedule": "cosine"},
    },
    # Hou & Li 2022: a denoiser that is trained without any mask, in a loop with the measured points
    "idpcnn": {
        "generator": {"name": "idpcnn"},
        "loss": {"adversarial": "none", "content": "mse", "a": 1.0, "b": 0.0},
        "generator_optimizer": _ALONE,
    },
    # Hossain et al. 2023: dense blocks, attention gates, mean squared error
    "fda_cnn": {
        "generator": {"name": "fda", "width": 32},
        "loss": {"adversarial": "none", "content": "mse", "a": 1.0, "b": 0.0},
        "generator_optimizer": _ALONE,
    },
    # after Xu et al. 2019, of whom only the title is public; critic and loss are DAGAN's
    "dilated_gan": {
        "generator": {"name": "dilated"},
        "critic": {"name": "dagan", "steps": 1, "lipschitz": "none"},
        "loss": {"adversarial": "bce", "a": 15.0, "b": 0.1},
        "generator_optimizer": _ADAM,
        "critic_optimizer": _ADAM,
    },
    # Wang et al. 2020: all coils' complex images together, no sensitivity maps
    "deepcomplexmri": {
        "signal": {"mode": "complex", "coils": "all", "num_coils": 12},
        "generator": {"name": "deepcomplex", "width": 32, "data_consistency": "hard", "cascades": 10},
        "loss": {"adversarial": "none", "content": "complex_l1", "a": 1.0, "b": 0.0},
        "generator_optimizer": {"name": "adam", "learning_rate": 1e-4, "beta1": 0.9},
    },
    # after Yakkundi & Subha 2020, an abstract: frames in time, from shared views
    "conv_lstm": {
        "data": {"stack": 8},
        "mask": {"per_slice": True},
        "generator": {
            "name": "conv_lstm",
            "width": 32,
            "start": {"method": "view_sharing"},
            "data_consistency": "hard",
            "cascades": 3,
        },
        "loss": {"adversarial": "none", "content": "l1", "a": 1.0, "b": 0.0},
        "generator_optimizer": _ALONE,
        "training": {"schedule": "cosine"},
    },
    # after Wu et al. 2019, an abstract: self-attention in every layer; with data.stack=8 in slabs of slices
    "sat_net": {
        "generator": {"name": "sat_net", "width": 32, "data_consistency": "hard"},
        "loss": {"adversarial": "none", "content": "l1", "a": 1.0, "b": 0.0},
        "generator_optimizer": _ALONE,
        "training": {"schedule": "cosine"},
    },
}


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where both have a key, the value of `given` counts."""
    result: dict[str, Any] = {**defaults, **given}
    for key, value in defaults.items():
        own = given.get(key)
        if isinstance(value, Mapping):
            if isinstance(own, Mapping):
                result[key] = merged(value, own)
            elif own is not None and hasattr(own, "model_dump"):
                result[key] = own
    return result
