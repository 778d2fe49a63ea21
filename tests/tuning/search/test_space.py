"""The search space is checked against the experiment before any trial starts."""

from __future__ import annotations

from typing import Any

import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.space import Dimension, parse_dimension, parse_space, starting_point, with_values


@pytest.mark.parametrize(
    ("text", "kind", "arguments"),
    [
        ("loguniform(0.1, 100)", "loguniform", (0.1, 100)),
        (" loguniform(1e-3,1e-1) ", "loguniform", (1e-3, 1e-1)),
        ("uniform(-1, 1)", "uniform", (-1, 1)),
        ("randint(1, 6)", "randint", (1, 6)),
        ("choice(1, 2, 4)", "choice", (1, 2, 4)),
        ("choice('wasserstein', 'bce')", "choice", ("wasserstein", "bce")),
        ("choice(None, 0.01)", "choice", (None, 0.01)),
        ("choice((64, 64), [128, 256])", "choice", ([64, 64], [128, 256])),
    ],
)
def test_dimensions_are_read(text: str, kind: str, arguments: tuple[Any, ...]) -> None:
    dimension = parse_dimension("loss.a", text)
    assert dimension == Dimension("loss.a", kind, arguments)
    if kind != "choice":
        assert parse_dimension("loss.a", str(dimension)) == dimension


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lognormal(0, 1)", "expected one of loguniform"),
        ("5", "expected one of loguniform"),
        ("", "expected one of loguniform"),
        ("uniform(1", "expected one of loguniform"),
        ("uniform", "expected one of loguniform"),
        ("__import__('os').system('true')", "expected one of loguniform"),
        ("uniform(open('x'), 2)", "expected one of loguniform"),
        ("uniform(low=1, high=2)", "write values without names"),
        ("loguniform(0.1, 100, base=2)", "write values without names"),
        ("uniform(1)", "uniform takes 2 values, not 1"),
        ("randint(1, 2, 3)", "randint takes 2 values, not 3"),
        ("choice()", "choice takes at least 1 values, not 0"),
        ("uniform(2, 1)", "numbers with low < high"),
        ("uniform(1, 1)", "numbers with low < high"),
        ("uniform(1, 1e999)", "numbers with low < high"),
        ("uniform('a', 'b')", "numbers with low < high"),
        ("loguniform(0, 1)", "must begin above 0"),
        ("loguniform(-1, 1)", "must begin above 0"),
        ("randint(0.5, 3)", "must be whole numbers"),
    ],
)
def test_anything_else_is_refused_with_its_key(text: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_dimension("loss.a", text)
    assert f"sweep.space.loss.a={text!r}" in str(caught.value)
    assert reason in str(caught.value)


def test_a_space_that_the_experiment_accepts_is_parsed() -> None:
    space = {
        "loss.a": "loguniform(0.1, 100)",
        "critic.clip": "choice(0.01, None)",
        "critic.steps": "randint(1, 6)",
        "training.zero_stage": "randint(0, 4)",
        "mask.sampling_ratio": "uniform(0.1, 1)",
    }
    assert [dimension.key for dimension in parse_space(space, Experiment())] == list(space)


@pytest.mark.parametrize(
    ("key", "text", "parts"),
    [
        ("loss.aa", "uniform(1, 2)", ["unknown key 'loss.aa'", "Valid keys of loss: adversarial, critic_sees"]),
        ("sweep.seed", "randint(1, 2)", ["unknown key 'sweep'"]),
        ("loss.a", "uniform(-1, 2)", ["loss.a=-1", "greater than or equal to 0"]),
        ("mask.sampling_ratio", "uniform(0.5, 1.5)", ["mask.sampling_ratio=1.5", "less than or equal to 1"]),
        ("critic.steps", "uniform(0.5, 2)", ["critic.steps=0.5", "valid integer"]),
        ("critic.steps", "randint(0, 3)", ["critic.steps=0", "greater than or equal to 1"]),
        ("training.zero_stage", "randint(0, 5)", ["training.zero_stage=4"]),
        ("training.global_batch_size", "choice(16, 15)", ["training.global_batch_size=15", "2 workers"]),
        ("loss.adversarial", "choice('bce', 'hinge')", ["loss.adversarial='hinge'"]),
        ("loss", "choice(1, 2)", ["loss=1"]),
    ],
)
def test_bounds_that_the_experiment_refuses_are_refused(key: str, text: str, parts: list[str]) -> None:
    experiment = Experiment.model_validate({"cluster": {"num_workers": 2}})
    with pytest.raises(InputError) as caught:
        parse_space({key: text}, experiment)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_an_empty_space_is_refused_with_an_example() -> None:
    with pytest.raises(InputError, match=r"nothing to search: give sweep.space, such as space.loss.a="):
        parse_space({}, Experiment())


@pytest.mark.parametrize(
    ("key", "text", "value", "inside"),
    [
        ("loss.a", "loguniform(0.1, 100)", 15, True),
        ("loss.a", "loguniform(0.1, 10)", 15, False),
        ("loss.a", "uniform(15, 20)", 15, True),
        ("loss.a", "uniform(16, 20)", 15, False),
        ("critic.steps", "randint(1, 6)", 5, True),
        ("critic.steps", "randint(1, 5)", 5, False),
        ("critic.steps", "choice(1, 5)", 5, True),
        ("critic.steps", "choice(1, 2)", 5, False),
        ("critic.clip", "loguniform(0.001, 0.1)", None, False),
        ("critic.clip", "choice(None, 0.1)", None, True),
        ("loss.adversarial", "choice('bce', 'wasserstein')", "wasserstein", True),
        ("data.crop", "choice((64, 64), (128, 128))", [64, 64], True),
        ("data.crop", "choice((64, 64), (128, 128))", [64, 128], False),
    ],
)
def test_the_experiments_own_values_come_first_if_they_lie_inside(
    key: str, text: str, value: Any, inside: bool
) -> None:
    experiment = with_values(Experiment(), {key: value})
    dimensions = parse_space({key: text, "loss.b": "loguniform(0.001, 10)"}, experiment)
    assert starting_point(dimensions, experiment) == ({key: value, "loss.b": 0.1} if inside else None)


def test_values_and_name_are_set_and_nothing_else() -> None:
    base = Experiment.model_validate({"seed": 4, "mask": {"seed": 2}})
    changed = with_values(base, {"loss.a": 3.0, "critic.clip": 0.05}, name="trial-1")
    assert (changed.loss.a, changed.critic.clip, changed.name) == (3.0, 0.05, "trial-1")
    back = with_values(changed, {"loss.a": base.loss.a, "critic.clip": base.critic.clip}, name=base.name)
    assert back == base


def test_a_range_of_ratios_is_searched_as_a_whole_or_by_its_ends() -> None:
    ratio, wide = {"min": 0.1, "max": 0.5}, {"min": 0.05, "max": 0.9}
    experiment = Experiment.model_validate({"mask": {"sampling_ratio": ratio}})
    whole = parse_space({"mask.sampling_ratio": f"choice(0.25, {ratio}, {wide})"}, experiment)
    assert starting_point(whole, experiment) == {"mask.sampling_ratio": ratio}
    assert with_values(experiment, {"mask.sampling_ratio": wide}).mask.ratios == (0.05, 0.9)
    assert with_values(experiment, {"mask.sampling_ratio": 0.25}).mask.ratios == (0.25, 0.25)
    end = parse_space({"mask.sampling_ratio.max": "uniform(0.2, 0.9)"}, experiment)
    assert starting_point(end, experiment) == {"mask.sampling_ratio.max": 0.5}
    assert with_values(experiment, {"mask.sampling_ratio.max": 0.3}).mask.ratios == (0.1, 0.3)
    with pytest.raises(InputError, match=r"max=0\.05 is not more than min=0\.1"):
        parse_space({"mask.sampling_ratio.max": "uniform(0.05, 0.9)"}, experiment)
