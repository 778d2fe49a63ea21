"""Every key of an experiment explains itself, and what is published about the keys is what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from larmor.cli import main
from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.cluster.experiments.units import UNITS
from larmor.commands.configuration import all_sections, key_page, resolve, schema_text
from larmor.commands.training import load_experiment
from larmor.recon.recipe.mask_kinds import KINDS
from larmor.storage.objects.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEYS = [key for section in all_sections() for key in section.keys]
FREE = ("decoding.validation_runs", "decoding.test_runs")  # numbers of runs, as the scanner gave them


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_has_a_description_a_type_and_a_range(key) -> None:  # type: ignore[no-untyped-def]
    assert len(key.description.split()) >= 2
    assert "any" not in key.type.split()
    numeric = "integer" in key.type or "number" in key.type
    assert key.range or key.name in FREE or not numeric
    counts = numeric and key.name not in FREE and not key.name.endswith("seed")
    assert bool(key.unit) == counts


def test_every_unit_is_that_of_a_key_and_stands_in_the_schema() -> None:
    assert set(UNITS) == {key.name for key in KEYS if key.unit}
    schema = json.loads(schema_text())
    assert schema["$defs"]["TrainingConfig"]["properties"]["num_steps"]["unit"] == "steps"
    assert schema["$defs"]["ClusterConfig"]["properties"]["num_workers"]["unit"] == "workers"
    assert next(key.unit for key in KEYS if key.name == "signal.pet.resolution_mm") == "mm"


def test_every_key_of_a_resolved_experiment_is_listed() -> None:
    def leaves(content: object, prefix: str = "") -> set[str]:
        if not isinstance(content, dict) or not content:
            return {prefix}
        return {leaf for name, value in content.items() for leaf in leaves(value, f"{prefix}.{name}".lstrip("."))}

    listed = {key.name for key in KEYS}
    found = leaves(yaml.safe_load(resolve(None)))
    assert found - {"decoding", "init_from"} <= listed, "sections that may be null"
    assert len(listed) > 100


def test_the_published_page_and_schema_are_current() -> None:
    assert (DOCS / "configuration.md").read_text() == key_page(), "larmor config --page > docs/configuration.md"
    assert (DOCS / "experiment.schema.json").read_text() == schema_text(), "larmor config --schema > docs/…"


@pytest.mark.parametrize("name", shipped_experiments())
def test_a_shipped_experiment_obeys_the_schema(name: str) -> None:
    content, schema = yaml.safe_load(shipped_experiments()[name].read_text()), json.loads(schema_text())
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(content)] == []


def test_the_schema_knows_parts_of_ones_own() -> None:
    """By MODULE:NAME, or as an installed package calls them."""
    for name in ("mylab.parts:Net", "two_layers"):
        parts = {"generator": {"name": name}, "critic": {"name": name}, "loss": {"content": name}, "system": name}
        metrics = {"training": {"metrics": [name], "best_metric": name}, "sweep": {"metric": ["psnr", name]}}
        schema = jsonschema.Draft202012Validator(json.loads(schema_text()))
        assert schema.is_valid({**parts, "mask": {"kind": name}, **metrics})


@pytest.mark.parametrize(
    "wrong", [{"mask": {"kimd": "radial"}}, {"training": {"num_steps": 0}}, {"system": "a gan"}, {"system": 3}]
)
def test_the_schema_refuses_what_the_program_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(schema_text()))


def test_what_is_printed_is_the_same_experiment(tmp_path: Path) -> None:
    given = ["laptop", "mask.kind=radial", "training.num_steps=7", "space.loss.a=loguniform(1,10)"]
    result = CliRunner().invoke(main.app, ["config", *given])
    assert result.exit_code == 0
    (tmp_path / "full.yaml").write_text(result.output)
    assert load_experiment(str(tmp_path / "full.yaml")) == load_experiment(given[0], given[1:])


def test_overrides_need_no_experiment() -> None:
    result = CliRunner().invoke(main.app, ["config", "mask.kind=radial", "seed=3"])
    content = yaml.safe_load(result.output)
    assert (content["mask"]["kind"], content["seed"], content["system"]) == ("radial", 3, "gan_resnet50")


def test_a_list_of_keys_in_a_pipe_has_each_key_on_one_line() -> None:
    lines = CliRunner().invoke(main.app, ["config", "--keys"]).output.splitlines()
    for key in KEYS:
        (line,) = [line for line in lines if line.startswith(f"│ {key.name} ")]
        assert key.description in line


def test_mistakes_end_in_a_sentence() -> None:
    with pytest.raises(InputError, match="did you mean 'kind'"):
        resolve(None, ["mask.kimd=radial"])
    with pytest.raises(InputError, match="no such file; shipped experiments are"):
        resolve("labtop")
    result = CliRunner().invoke(main.app, ["config", "--keys", "--schema"])
    assert result.exit_code == 2
    assert "exclude each other" in result.output


@pytest.mark.parametrize(
    ("command", "listed"),
    [
        (["train", "--help"], list(shipped_experiments())),
        (["sweep", "--help"], list(shipped_experiments())),
        (["masks", "--help"], [*KINDS, "equispaced"]),
        (["evaluate", "--help"], [*KINDS, "equispaced"]),
        (["view", "--help"], ["--trust-code"]),
        (["report", "--help"], ["--trust-code"]),
    ],
)
def test_help_lists_what_there_is_to_choose_from(command: list[str], listed: list[str]) -> None:
    result = CliRunner().invoke(main.app, command, env={"COLUMNS": "500"})
    assert result.exit_code == 0
    assert [word for word in listed if word != "file" and word not in result.output] == []
