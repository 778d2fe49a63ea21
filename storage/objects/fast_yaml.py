"""Documents that Larmor wrote itself, read fast: a thousand configurations take a second, not ten."""

from __future__ import annotations

from typing import Any

import yaml

# PyYAML's own loader in C understands the same; some builds of PyYAML lack it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(content: str) -> Any:
    """What `yaml.safe_load` gives. Raises `yaml.YAMLError`."""
    return yaml.load(content, _LOADER)
