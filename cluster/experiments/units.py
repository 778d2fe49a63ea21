"""What the number of each key counts or is measured in. Seeds and names of runs are numbers without a unit."""

from __future__ import annotations

from collections.abc import Mapping

_OPTIMIZER = {
    "learning_rate": "weights per gradient",
    "beta1": "fraction",
    "beta2": "fraction",
    "alpha": "fraction",
    "epsilon": "gradient",
    "weight_decay": "weight",
    "clip_gradient_norm": "gradient",
}
_BY_SECTION: Mapping[str, Mapping[str, str]] = {
    "data": {
        "crop": "pixels",
        "stack": "slices",
        "read_threads": "requests",
        "block_bytes": "bytes",
        "shuffle_bytes": "bytes",
        "lanes": "lanes",
        "read_ahead_bytes": "bytes",
        "memory_cache_bytes": "bytes",
        "disk_cache_bytes": "bytes",
    },
    "augment": {
        "flip": "probability",
        "rotation": "degrees",
        "shift": "fraction",
        "zoom": "fraction",
        "elastic": "fraction",
        "contrast": "fraction",
        "bias": "factor",
    },
    "signal": {"num_coils": "coils", "noise": "fraction"},
    "signal.pet": {
        "counts": "coincidences",
        "full_counts": "coincidences",
        "background": "fraction",
        "num_angles": "angles",
        "resolution_mm": "mm",
        "pixel_mm": "mm",
    },
    "mask": {
        "sampling_ratio": "fraction",
        "center_fraction": "fraction",
        "spread": "fraction",
        "acceleration": "factor",
    },
    "generator": {
        "width": "channels",
        "levels": "sizes",
        "attention_from_level": "sizes",
        "iterations": "turns",
        "cascades": "turns",
        "turns": "turns",
    },
    "generator.start": {
        "iterations": "iterations",
        "weight": "weight",
        "cache_bytes": "bytes",
        "disk_cache_bytes": "bytes",
    },
    "critic": {"width": "channels", "steps": "steps", "clip": "weight", "penalty_weight": "weight"},
    "loss": {"residual_critic": "weight", "a": "weight", "b": "weight"},
    "generator_optimizer": _OPTIMIZER,
    "critic_optimizer": _OPTIMIZER,
    "training": {
        "num_steps": "steps",
        "global_batch_size": "samples",
        "gradient_accumulation": "micro-batches",
        "halve_every": "steps",
        "decay_every": "steps",
        "decay_factor": "factor",
        "ema_decay": "fraction",
        "early_stop": "validations",
        "largest_critic_loss": "loss",
        "log_every": "steps",
        "validate_every": "steps",
        "checkpoint_every": "steps",
        "validation_slices": "slices",
        "validation_images": "slices",
        "keep_checkpoints": "checkpoints",
        "keep_best": "checkpoints",
    },
    "decoding": {
        "width": "channels",
        "units": "units",
        "code": "numbers",
        "adversarial": "weight",
        "content": "weight",
        "autoencoder": "weight",
        "ranking": "weight",
        "margin": "cosine",
    },
    "cluster": {
        "num_workers": "workers",
        "cpus_per_worker": "cores",
        "max_failures": "restarts",
        "wait_seconds": "seconds",
        "grace_seconds": "seconds",
        "hang_seconds": "seconds",
        "resize_seconds": "seconds",
    },
    "cluster.serving": {
        "replicas": "replicas",
        "max_replicas": "replicas",
        "cpus_per_replica": "cores",
        "batch_size": "slices",
    },
    "sweep": {
        "num_trials": "trials",
        "grace_steps": "steps",
        "reduction_factor": "factor",
        "seeds": "trainings",
        "start_seeds": "trainings",
        "concurrent_trials": "trials",
    },
}
UNITS: Mapping[str, str] = {
    f"{section}.{name}": unit for section, units in _BY_SECTION.items() for name, unit in units.items()
}
"""Dotted key → unit; `weight`, `factor` and `fraction` have none that could be named."""
