"""What a training starts from in place of random weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class InitFromConfig(BaseModel):
    """Weights of a run, or of a pulled model, that the training starts from. A URL alone is the key `url`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(min_length=1, description="a run, a sweep's trial or a model directory: a URL or a folder")
    checkpoint: Literal["best", "latest"] = Field(
        "best", description="which checkpoint of a run: the best by its own best_metric, or the latest"
    )
    critics: bool = Field(False, description="take the critics as well, which a run has and a model has not")
    averages: bool = Field(
        False,
        description="continue the run's averaged weights (ema_decay) beside the weights that it trained; without this "
        "the training starts from the averaged ones, which are what is evaluated",
    )
    matching: Literal["strict", "by_name"] = Field(
        "strict",
        description="strict: every tensor of either side has its like on the other; by_name: take those of equal name "
        "and shape",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of its generator.safetensors: other weights at that URL are refused; a sweep that begins with "
        "null keeps what it found",
    )


def _as_section(given: Any) -> Any:
    return {"url": given} if isinstance(given, str) else given


InitFrom = Annotated[InitFromConfig, BeforeValidator(_as_section, json_schema_input_type=InitFromConfig | str)]
