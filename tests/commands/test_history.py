"""`larmor.history`: every step as a row."""

from __future__ import annotations

from pathlib import Path

import pytest

import larmor
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from tests.synthetic_sweep import SPACE, write_sweep


def test_a_run_that_is_running(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.create("name: x\n")
    table = larmor.history(str(tmp_path / "run"))
    assert (len(table), list(table)) == (0, ["step"])
    rows = [{"step": 1, "loss/content": 2.0}, {"step": 2, "loss/content": 1.0, "val/psnr": 30.0}]
    run.write_history(2, rows)
    table = larmor.history(str(tmp_path / "run"))
    assert table.step.tolist() == [1, 2]
    assert table.step.dtype == "int64"
    assert table["loss/content"].tolist() == [2, 1]
    assert table.dropna()["val/psnr"].tolist() == [30]
    assert larmor.history(str(tmp_path / "run"), after=1).to_dict("records") == [{**rows[1]}]
    late = larmor.history(str(tmp_path / "run"), after=2)
    assert (len(late), late.columns[0], late.step.dtype) == (0, "step", "int64")
    with pytest.raises(InputError, match="after=-1: steps are counted from 1"):
        larmor.history(str(tmp_path / "run"), after=-1)


def test_a_sweep_has_its_trials_and_their_values(tmp_path: Path) -> None:
    url = str(tmp_path / "sweep")
    folder = write_sweep(url, num_trials=8)
    folder.begin_trial("running", dict.fromkeys(SPACE, 1.0))
    folder.trial_run("running").write_history(1, [{"step": 1, "loss/content": 9.0}])
    table = larmor.history(url)
    assert list(table)[: 3 + len(SPACE)] == ["trial", "state", *SPACE, "step"]
    for trial in folder.trials():
        rows = table[table.trial == trial.id]
        assert rows.to_dict("records") != [] or trial.state == "failed"
        assert set(rows.state) <= {trial.state}
        for key, value in trial.parameters.items():
            assert set(rows[key]) <= {value}
        assert [int(step) for step in rows.step] == [row["step"] for row in folder.trial_run(trial.id).history()]
    (running,) = table[table.state == "running"].to_dict("records")
    assert set(larmor.history(url, after=20).step) == {step for step in table.step if step > 20}
    assert (running["trial"], running["step"], running["loss/content"]) == ("running", 1, 9)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no run here"):
        larmor.history(str(tmp_path / "empty"))
    with pytest.raises(InputError):
        larmor.history("s3://")
