"""One YAML file gives one validated experiment, or a sentence that says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from larmor.cluster.experiments.experiment import (
    Experiment,
    as_override,
    differing_keys,
    dump_for_workers,
    dump_yaml,
    get_dotted,
    parse_override,
    set_dotted,
)
from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.recon.recipe.mask_config import RatioRange
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import SweepExperiment, load_sweep_experiment
from larmor.tuning.search.space import parse_space, with_values

SHIPPED = shipped_experiments()


def load(tmp_path: Path, text: str, *overrides: str) -> SweepExperiment:
    (tmp_path / "my.yaml").write_text(text)
    return load_sweep_experiment(str(tmp_path / "my.yaml"), overrides)


def test_the_papers_sizes_and_a_small_one_are_shipped() -> None:
    assert set(SHIPPED) == {"fast", "laptop", "paper_64x128", "paper_128x256", "paper_256x256", "pet", "tigan"}


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_it_loads_by_name_and_by_path(self, name: str) -> None:
        by_name = load_sweep_experiment(name, [])
        assert by_name == load_sweep_experiment(str(SHIPPED[name]), [])
        assert by_name.name == name
        assert by_name.run_url == f"s3://larmor/runs/{name}"
        assert by_name.sweep_url == f"s3://larmor/sweeps/{name}"

    def test_it_trains_with_the_papers_size(self, name: str) -> None:
        experiment = load_sweep_experiment(name, [])
        if name.startswith("paper_"):
            height, width = (int(part) for part in name.removeprefix("paper_").split("x"))
            assert experiment.data.crop == (height, width)
            assert experiment.generator.width == experiment.critic.width == 64

    def test_its_search_is_valid(self, name: str) -> None:
        experiment = load_sweep_experiment(name, [])
        trial = with_values(experiment, experiment.sweep.overrides)
        keys = {dimension.key for dimension in parse_space(experiment.sweep.space, trial)}
        own = {"tigan": {"decoding.ranking"}, "pet": {"loss.a", "loss.residual_critic"}}
        assert keys >= own.get(name, {"loss.a", "loss.b", "critic.clip"})

    def test_it_comes_back_from_its_dump(self, name: str, tmp_path: Path) -> None:
        own = {"tigan": "decoding.margin=0.1", "pet": "signal.pet.counts=1e5"}
        changes = [own[name]] if name in own else ["critic.clip=null", "mask.seed=7"]
        experiment = load_sweep_experiment(name, changes)
        assert load(tmp_path, dump_yaml(experiment)) == experiment
        (tmp_path / "part.yaml").write_text(dump_yaml(experiment.training_part()))
        part = load_sweep_experiment(str(tmp_path / "part.yaml"), []).training_part()
        assert part == experiment.training_part()
        assert not hasattr(part, "sweep")


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "") == SweepExperiment()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("generator_optimizer.learning_rate=5e-5", 5e-5),
        ("generator_optimizer.learning_rate=1", 1.0),
        ("loss.a=1.5E+1", 15.0),
        ("training.num_steps=100", 100),
        ("critic.clip=null", None),
        ("critic.clip=0.02", 0.02),
        ("mask.per_slice=true", True),
        ("mask.sampling_ratio={min: 0.1, max: 0.5}", RatioRange(min=0.1, max=0.5)),
        ("data.crop=[64, 128]", (64, 128)),
        ("mask.kind=gaussian2d", "gaussian2d"),
        ("name=run-7", "run-7"),
        ("data.url=s3://bucket/a=b", "s3://bucket/a=b"),
    ],
)
def test_overrides_are_typed(tmp_path: Path, override: str, value: Any) -> None:
    found = get_dotted(load(tmp_path, "", override), override.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["2024", "1e5", "nan", "007", "true", "2024-01-01", "1_000", "0x10", "inf", "1.50", "no"]
)
def test_what_a_text_is_set_to_stays_as_it_was_written(value: str) -> None:
    """YAML would make numbers, dates and truth values of it."""
    for key in ("name", "data.url", "data.validation_split"):
        for written in (value, f"'{value}'", f' "{value}"'):
            experiment = load_sweep_experiment("laptop", [f"{key}={written}"])
            assert get_dotted(experiment, key) == value


def test_null_is_nothing_where_nothing_may_stand() -> None:
    for written, value in (("null", None), ("", None), ("2024", "2024"), ("'null'", "null")):
        assert load_sweep_experiment("laptop", [f"data.disk_cache={written}"]).data.disk_cache == value


@pytest.mark.parametrize("value", ["2024", "true", "2024-01-01", "[a]"])
def test_what_is_no_text_in_a_file_is_refused_with_the_remedy(tmp_path: Path, value: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"name: {value}\n")
    with pytest.raises(InputError, match=r"name=.*put it into quotes"):
        load_sweep_experiment(str(tmp_path / "mine.yaml"), [])


def test_the_later_override_wins_over_the_file(tmp_path: Path) -> None:
    experiment = load(tmp_path, "loss: {a: 2, b: 3}", "loss.a=4", "loss.a=5")
    assert (experiment.loss.a, experiment.loss.b) == (5, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("los: {a: 1}", ["unknown key 'los'", "did you mean 'loss'?", "top level: system, seed, data, augment"]),
        ("loss: {aa: 1}", ["unknown key 'loss.aa'", "did you mean 'a'?", "keys of loss: adversarial, critic_sees"]),
        ("training: {num_step: 5}", ["'training.num_step'", "did you mean 'num_steps'?", "global_batch_size"]),
        ("critic: {banana: 5}", ["unknown key 'critic.banana'", "keys of critic: name, width, norm, steps"]),
        ("sweep: {trials: 5}", ["unknown key 'sweep.trials'", "did you mean 'num_trials'?"]),
        ("cluster: {gpu: true}", ["unknown key 'cluster.gpu'", "keys of cluster: num_workers"]),
    ],
)
def test_an_unknown_key_names_the_valid_ones(tmp_path: Path, text: str, parts: list[str]) -> None:
    ((section, inner),) = yaml.safe_load(text).items()
    ((key, value),) = inner.items()
    for attempt in (lambda: load(tmp_path, text), lambda: load(tmp_path, "", f"{section}.{key}={value}")):
        with pytest.raises(InputError) as caught:
            attempt()
        assert [part for part in [*parts, "my.yaml"] if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("mask.sampling_ratio=0", ["mask.sampling_ratio=0", "greater than 0"]),
        ("mask.sampling_ratio=1.5", ["mask.sampling_ratio=1.5", "less than or equal to 1"]),
        ("mask.kind=cubes", ["mask.kind='cubes'", "'gaussian1d', 'gaussian2d'"]),
        ("critic.clip=-0.01", ["critic.clip=-0.01", "greater than 0"]),
        ("training.num_steps=many", ["training.num_steps='many'", "valid integer"]),
        ("training.num_steps=1.5", ["training.num_steps=1.5", "valid integer"]),
        ("training.zero_stage=4", ["training.zero_stage=4", "0, 1, 2 or 3"]),
        ("data.crop=[64]", ["data.crop", "[64]"]),
        ("loss.a=nan", ["loss.a=nan", "finite number"]),
        ("loss=5", ["loss=5", "LossConfig"]),
        ("name=../../etc", ["name='../../etc'", "should match pattern"]),
        ("name=", ["name=None", "valid string"]),
        ("name=a b", ["name='a b'", "should match pattern"]),
        ("cluster.num_workers=0", ["cluster.num_workers=0", "greater than or equal to 1"]),
        (
            "cluster.num_workers={min: 1, max: 4}",
            ["global_batch_size=16 is not divisible by 3 workers", "{min: 1, max: 4}", "global_batch_size=24", "range"],
        ),
        ("cluster.num_workers={min: 4, max: 2}", ["cluster.num_workers", "max=2 is less than min=4"]),
        ("cluster.num_workers={min: 0, max: 2}", ["cluster.num_workers.min=0", "greater than or equal to 1"]),
        ("cluster.num_workers={min: 1}", ["cluster.num_workers.max", "field required"]),
        (
            "cluster.num_workers={min: 1, most: 4}",
            ["'cluster.num_workers.most'", "keys of cluster.num_workers: min, max"],
        ),
        ("mask.sampling_ratio={min: 0.5, max: 0.1}", ["mask.sampling_ratio", "max=0.1 is not more than min=0.5"]),
        ("mask.sampling_ratio={min: 0, max: 0.1}", ["mask.sampling_ratio.min=0", "greater than 0"]),
        ("mask.sampling_ratio={min: 0.1, most: 0.5}", ["'mask.sampling_ratio.most'", "sampling_ratio: min, max"]),
        ("mask.sampling_ratio=[0.1, 0.5]", ["mask.sampling_ratio=[0.1, 0.5]", "valid number"]),
        ("mask.acceleration={min: 2}", ["mask", "give a number from 1 on, or {min: 2, max: 10}"]),
        ("cluster.num_workers=two", ["cluster.num_workers='two'", "valid integer"]),
        ("cluster.num_workers=3", ["training.global_batch_size=16", "3 workers", "use a multiple of 3"]),
        (
            "training.gradient_accumulation=5",
            ["training.global_batch_size=16", "training.gradient_accumulation=5", "use a multiple of 5"],
        ),
        ("sweep.metric=loss", ["sweep.metric='loss'", "psnr, ssim"]),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(tmp_path: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "", override)
    assert [part for part in [*parts, "my.yaml"] if part not in str(caught.value)] == []


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "", "mask.sampling_ratio=2", "los.a=1", "critic.steps=0")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(any(key in line for line in lines) for key in ("mask.sampling_ratio=2", "'los'", "critic.steps=0"))


def test_workers_and_micro_batches_divide_the_batch() -> None:
    experiment = Experiment.model_validate(
        {"training": {"global_batch_size": 24, "gradient_accumulation": 2}, "cluster": {"num_workers": 3}}
    )
    assert experiment.micro_batch_size(3) == 4
    with pytest.raises(ValueError, match=r"24 is not divisible by 5 workers × 2 micro-batches; use a multiple of 10"):
        experiment.micro_batch_size(5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "is not YAML"),
        (b"- 1\n- 2", "expected keys and values, found list"),
        (b"just text", "expected keys and values, found str"),
        (b"\xff\xfe\x80", "is not"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(InputError, match=f"my.yaml: {reason}"):
        load_sweep_experiment(str(tmp_path / "my.yaml"), [])


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match=r"latop: no such file; shipped experiments are fast, laptop, paper"):
        load_sweep_experiment("latop", [])


@pytest.mark.parametrize("text", ["training.num_steps", "=5", "  =5", "loss.a=[1"])
def test_an_override_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected key=value|is not YAML"):
        parse_override(text)


def test_dotted_keys_make_sections_but_never_replace_values() -> None:
    content: dict[str, Any] = {"loss": {"a": 1}, "seed": 3}
    set_dotted(content, "loss.b", 2)
    set_dotted(content, "mask.seed", 4)
    assert content == {"loss": {"a": 1, "b": 2}, "seed": 3, "mask": {"seed": 4}}
    with pytest.raises(InputError, match=r"'seed.x': seed is a value, not a section"):
        set_dotted(content, "seed.x", 1)


def test_asking_for_an_unknown_key_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown key 'loss.c'.*Valid keys of loss: adversarial, critic_sees"):
        get_dotted(Experiment(), "loss.c")
    with pytest.raises(InputError, match=r"unknown key 'loss.a.x'"):
        get_dotted(Experiment(), "loss.a.x")


def test_differing_keys_are_dotted() -> None:
    old, new = Experiment(), Experiment.model_validate({"loss": {"a": 1}, "name": "other"})
    differing = differing_keys(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert sorted(differing) == ["loss.a", "name"]
    assert differing_keys({"a": 1}, {"b": {"c": 2}}) == ["a", "b"]
    assert differing_keys(old.model_dump(), old.model_dump()) == []


def test_a_dimension_may_come_from_the_command_line(tmp_path: Path) -> None:
    experiment = load(tmp_path, "sweep: {space: {loss.a: 'uniform(1, 2)'}}", "space.critic.clip=loguniform(1e-3,0.1)")
    assert experiment.sweep.space == {"loss.a": "uniform(1, 2)", "critic.clip": "loguniform(1e-3,0.1)"}
    with pytest.raises(InputError, match=r"expected space\.KEY=loguniform"):
        load(tmp_path, "", "space.loss.a")


@pytest.mark.parametrize(
    ("override", "fewest", "most"), [("3", 3, 3), ("{min: 1, max: 4}", 1, 4), ("{min: 2, max: 2}", 2, 2)]
)
def test_workers_are_a_number_or_a_range(tmp_path: Path, override: str, fewest: int, most: int) -> None:
    experiment = load(tmp_path, "training: {global_batch_size: 12}", f"cluster.num_workers={override}")
    assert (experiment.cluster.fewest_workers, experiment.cluster.most_workers) == (fewest, most)
    assert load(tmp_path, dump_yaml(experiment)) == experiment


def test_a_batch_that_the_message_names_fits_the_range(tmp_path: Path) -> None:
    text = "training: {global_batch_size: 16, gradient_accumulation: 2}\ncluster: {num_workers: {min: 2, max: 5}}"
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert "by 3, 5 workers × 2 micro-batches" in str(caught.value)
    remedy = str(caught.value).split("use ")[1].split(",")[0]
    assert load(tmp_path, text, remedy).training.global_batch_size == 120


@pytest.mark.parametrize("value", [None, True, 3, 1e-05, 0.25, "bce", [64, 128], {"min": 1, "max": 2}])
def test_an_override_holds_any_value_that_a_record_does(value: Any) -> None:
    assert parse_override(as_override("some.key", value)) == ("some.key", value)


class TestUnsupervised:
    """The critic compares measurements under the masks of two slices, which must be two slices and two masks."""

    GIVEN = ("system=unsupervised_gan", "cluster.num_workers=1", "training.global_batch_size=8")

    def build(self, *overrides: str) -> Experiment:
        return load_sweep_experiment("laptop", (*self.GIVEN, *overrides)).training_part()

    @pytest.mark.parametrize(
        "overrides",
        [
            ["mask.per_slice=false"],
            ["mask.per_slice=true", "mask.sampling_ratio=1"],
            ["mask.per_slice=true", "mask.kind=file", "mask.file=mask.npy"],
        ],
        ids=" ".join,
    )
    def test_one_mask_for_all_is_refused(self, overrides: list[str]) -> None:
        with pytest.raises(InputError, match=r"loss\.critic_sees=measurement .*mask\.per_slice=true"):
            self.build(*overrides)

    @pytest.mark.parametrize(
        "overrides",
        [
            ["training.gradient_accumulation=8"],
            ["cluster.num_workers=4", "training.gradient_accumulation=2"],
            ["cluster.num_workers={min: 1, max: 2}", "training.gradient_accumulation=4"],
        ],
        ids=" ".join,
    )
    def test_a_slice_alone_is_refused(self, overrides: list[str]) -> None:
        with pytest.raises(InputError, match=r"training\.global_batch_size=8 .* one slice .* use at least 16"):
            self.build("mask.per_slice=true", *overrides)

    def test_two_slices_of_two_masks_are_enough(self) -> None:
        assert self.build("mask.per_slice=true", "training.gradient_accumulation=4").micro_batch_size(1) == 2


def test_an_acceleration_takes_the_place_of_a_ratio_and_the_other_way_round(tmp_path: Path) -> None:
    assert load_sweep_experiment("laptop", ["mask.acceleration=8"]).mask.sampling_ratio == 1 / 8
    assert load(tmp_path, "mask: {acceleration: 4}", "mask.sampling_ratio=0.1").mask.sampling_ratio == 0.1
    assert load(tmp_path, "mask: {acceleration: 4, seed: 3}", "mask.kind=random").mask.sampling_ratio == 1 / 4
    with pytest.raises(InputError, match="leave one of them out"):
        load(tmp_path, "", "mask.acceleration=8", "mask.sampling_ratio=0.1")


def test_workers_get_local_places_absolute_and_urls_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    local, remote = (
        load_sweep_experiment("laptop", [f"data.url={url}"]).training_part() for url in ("data", "s3://larmor/heads")
    )
    assert dump_for_workers(local)["data"]["url"] == str(tmp_path.resolve() / "data")
    assert dump_for_workers(remote)["data"]["url"] == "s3://larmor/heads"
