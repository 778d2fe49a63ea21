"""Trackers that hear of a run beside its folder: the `tracking` section of an experiment."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from larmor.storage.objects.errors import InputError

_TITLES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
_SQLITE = "sqlite:///"
_PROJECT = re.compile(r"([\w.-]{1,128}/)?[^/\\#?%:\s][^/\\#?%:]{0,127}")


class TrackingConfig(BaseModel):
    """Keys of the services are read by their own libraries, from the environment of the workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlflow: str | None = Field(
        None, min_length=1, description="MLflow server or store, such as http://HOST:5000 or sqlite:///mlflow.db"
    )
    wandb: str | None = Field(
        None, min_length=1, description="project of Weights & Biases: PROJECT, or ENTITY/PROJECT for a team's"
    )

    @field_validator("mlflow")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "a configuration holds no password; leave USER:PASSWORD@ out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where the workers run"
            )
        return uri

    @field_validator("wandb")
    @classmethod
    def _is_a_project(cls, project: str | None) -> str | None:
        if project and not _PROJECT.fullmatch(project):
            raise ValueError("expected PROJECT or ENTITY/PROJECT, without any of \\ # ? % :, 128 characters at most")
        return project

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are wanted; each is also the name of the library and of Larmor's extra."""
        return tuple(name for name in _TITLES if getattr(self, name))

    def anywhere(self) -> TrackingConfig:
        """The same for processes with another working directory: a store in a file has its absolute path."""
        uri = self.mlflow or ""
        if uri.startswith(_SQLITE):
            uri = _SQLITE + _absolute(uri.removeprefix(_SQLITE))
        elif uri and ":" not in uri and uri != "databricks":
            uri = _absolute(uri)
        return self.model_copy(update={"mlflow": uri or None})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def title(name: str) -> str:
    """What people call a tracker."""
    return _TITLES[name]


def check_trackers(config: TrackingConfig) -> None:
    """Raises `InputError` if the library of a tracker is not installed here."""
    for name in config.names:
        if find_spec(name) is None:
            raise InputError(
                f"tracking.{name}={getattr(config, name)}: {_TITLES[name]} is not installed here; pip install "
                f"'larmor-mri[{name}]', here and on the nodes, or leave tracking.{name} out"
            )
