"""What an experiment's file can say: its keys, their JSON schema, the page about them, and a file in full."""

from __future__ import annotations

import json
from collections.abc import Sequence

from larmor.cluster.experiments.experiment import dump_yaml
from larmor.cluster.experiments.keys import Key, Section, json_schema, sections
from larmor.commands.training import load_experiment
from larmor.tuning.search.experiment import SweepExperiment, build_sweep_experiment

_PAGE = """\
# Configuration

An experiment is one YAML file. This page lists its keys. `larmor config --page` writes it, and `larmor config --keys`
shows the same table on a terminal. `larmor config EXPERIMENT key=value` prints an experiment in full, with every
default. A default here is that of `system: gan_resnet50`; another system puts its own in place of some of them, which
`larmor config EXPERIMENT system=NAME` shows.

Editors complete and check experiments by the [JSON schema](experiment.schema.json), which `larmor config --schema`
prints. Where the editor has the YAML language server, the first line of a file names the schema:

```yaml
# yaml-language-server: $schema=experiment.schema.json
```

On the command line a key stands with dots, as in `training.num_steps=100`. In a file it stands in its section.
"""


def resolve(source: str | None, overrides: Sequence[str] = ()) -> str:
    """An experiment in full as YAML, defaults and the section `sweep` included (`larmor config`).

    `source` and `overrides` are as for `load_experiment`; without `source` the defaults are taken. Raises
    `InputError` as that does.
    """
    return dump_yaml(
        load_experiment(source, overrides) if source else build_sweep_experiment({}, overrides, "defaults")
    )


def all_sections() -> list[Section]:
    """Every key of an experiment's file, by section."""
    return sections(SweepExperiment)


def schema_text() -> str:
    """The JSON schema of an experiment's file (`larmor config --schema`)."""
    return json.dumps(json_schema(SweepExperiment), indent=1, ensure_ascii=False) + "\n"


def key_page() -> str:
    """The page about all keys, in Markdown."""
    return "\n".join([_PAGE, *(_describe(section) for section in all_sections() if section.keys)])


def _describe(section: Section) -> str:
    heading = f"## `{section.name}`" if section.name else "## Top level"
    about = [section.about[0].upper() + section.about[1:].rstrip(".") + ".", ""] if section.about else []
    table = ["| key | type | unit | default | range | description |", "|---|---|---|---|---|---|"]
    return "\n".join([heading, "", *about, *table, *(_row(key) for key in section.keys), ""])


def _row(key: Key) -> str:
    bounds = f"`{key.range}`" if key.range.startswith("matches") else key.range
    cells = [f"`{key.name}`", key.type, key.unit, f"`{key.default}`", bounds, key.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
