"""The losses and metrics of a run, or of all trials of a sweep, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from larmor.cluster.runs.history_table import read_columns
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:
    from pandas import DataFrame


def history(url: str, after: int = 0) -> DataFrame:
    """Every step of the run or the sweep at `url` as a row of a pandas table, also while it is running.

    Columns of a run: `step`, the losses, the balance of generator and critic, and the validation's metrics (`val/psnr`
    and so on). What was not computed at a step is NaN there. The table of a sweep begins with the columns `trial`,
    `state`, and one for each searched key; a trial of several seeds has the training with the first one. The newest
    steps are those of the last report (`training.log_every`).

    With `after` the table has later steps alone: what one that was read before lacks. Only what holds them is read.
    Raises `InputError` if there is neither run nor sweep, and for a negative `after`.
    """
    if after < 0:
        raise InputError(f"after={after}: steps are counted from 1; give the last step that is known, or 0 for all")
    from pandas import DataFrame

    store = ObjectStore(url)
    store.check_access()
    if not store.exists("sweep.yaml"):
        run = RunFolder(url)
        run.config_yaml()  # raises if there is none
        return _typed(DataFrame(read_columns(run.store, after)))
    from larmor.tuning.report.trial_records import read_sweep

    sweep = read_sweep(url, after)
    rows = (
        {"trial": trial.id, "state": trial.state, **trial.parameters, **row}
        for trial in sweep.trials
        for row in trial.history
    )
    return _typed(_table(["trial", "state", *sweep.keys, "step"], list(rows)))


def _table(first: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    from pandas import DataFrame

    return DataFrame(rows, columns=list(dict.fromkeys([*first, *(name for row in rows for name in row)])))


def _typed(table: DataFrame) -> DataFrame:
    return table.astype({"step": "int64"})
