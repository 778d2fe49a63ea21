"""The page about sweeps and runs: everything that happened stands in it, it is drawn, and it loads nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from larmor.cluster.runs.attempts import Attempt
from larmor.cluster.runs.reports import Reports
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.tuning.report.charts import thinned
from larmor.tuning.report.importance import importance
from larmor.tuning.report.landscape import interpolate
from larmor.tuning.report.report import write_report
from larmor.tuning.report.spread import gain_of, gains, spreads
from larmor.tuning.report.trial_records import Sweep, read_sweep
from larmor.tuning.search.choice import choose_run
from larmor.tuning.search.objectives import Objectives
from larmor.tuning.search.records import State, TrialRecord
from larmor.tuning.search.sweep import describe_trial
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.browser import CHROMIUM, visit
from tests.synthetic_sweep import SPACE, peak_psnr, write_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """24 trials, 9 of which were stopped, diverged or failed; its data are not there. Not to be changed."""
    folder = write_sweep(str(tmp_path_factory.mktemp("sweeps") / "laptop"))
    folder.write_result(Objectives.of("psnr"))
    return folder


@pytest.fixture(scope="module")
def sweep(folder: SweepFolder) -> Sweep:
    return read_sweep(folder.url)


@pytest.fixture(scope="module")
def page(folder: SweepFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [folder.url])
    return path


def text_of(path: Path) -> str:
    """The page without plotly's own source and the charts' data."""
    return re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.DOTALL)


def test_a_trial_is_described_whatever_its_values_are() -> None:
    parameters = {"a": 0.123456, "kind": "bce", "b": 1.0}
    metrics = {"val/psnr": 29.0}
    trial = TrialRecord(id="two", state="finished", parameters=parameters, metrics=metrics, began=0, seconds=3.0)
    assert "a = 0.1235, kind = bce, b = 1 → val/psnr 29.0000" in describe_trial(trial, Objectives.of("psnr"))


def test_every_trial_stands_in_the_page_with_what_became_of_it(page: Path, sweep: Sweep) -> None:
    text = text_of(page)
    for trial in sweep.trials:
        assert f"<td>{trial.id}</td>" in text
        if trial.state != "finished":
            assert trial.reason in text.replace("&#39;", "'")
    counts = {state: sum(trial.state == state for trial in sweep.trials) for state in ("stopped", "diverged", "failed")}
    assert all(f"{count} {state}" in text for state, count in counts.items())
    assert sweep.best is not None
    assert f"<b>{sweep.best.value:.4f}</b><span>best val/psnr, trial {sweep.best.id}" in text
    images = sum(trial.num_images for trial in sweep.trials)
    assert f"<b>{images:,}</b><span>images seen".replace(",", " ") in text
    assert "against the starting point" in text


def test_the_table_beside_it_has_a_line_for_each_trial(page: Path, sweep: Sweep) -> None:
    with (page.parent / "report-laptop-trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [trial.id for trial in sweep.trials]
    for row, trial in zip(rows, sweep.trials, strict=True):
        assert {key: float(row[key]) for key in SPACE} == trial.parameters
        assert (float(row["val/psnr"]) if row["val/psnr"] else None) == trial.value
        assert (row["state"], row["reason"], int(row["images"])) == (trial.state, trial.reason, trial.num_images)


def test_pictures_that_cannot_be_made_are_explained(page: Path) -> None:
    assert "No pictures: " in text_of(page)
    assert "there is no data set here" in text_of(page)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_every_chart_and_asks_for_nothing(page: Path) -> None:
    shapes = "[...document.querySelectorAll('.plotly-graph-div')].map(d => d.querySelectorAll('.trace path').length)"
    titles = "[...document.querySelectorAll('.charts h3')].map(h => h.textContent)"
    seen = visit(page, [shapes, titles])
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    counts, headings = seen.answers
    expected = ["Curves of all trials", "Progress of the search", "Importance of each key", "Parallel coordinates"]
    expected += ["Landscape: loss.a × loss.b", "Slice: loss.a", "Slice: loss.b", "Slice: critic.clip"]
    assert headings == expected
    landscape = headings.index("Landscape: loss.a × loss.b")
    assert all(count >= 3 for count in counts), dict(zip(headings, counts, strict=True))
    assert counts[headings.index("Curves of all trials")] >= 20
    assert counts[landscape] >= 24
    picture = np.asarray(Image.open(io.BytesIO(seen.picture)).convert("RGB"))
    assert picture.shape[0] > 3000, "the whole page"
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200


def test_nothing_names_another_host_outside_of_plotlys_source(page: Path) -> None:
    assert re.search(r"https?://", text_of(page)) is None
    assert "default-src 'none'" in page.read_text()


def test_the_key_that_counts_is_the_most_important(sweep: Sweep) -> None:
    found = importance(sweep)
    assert found[0].key == "loss.a"
    assert sum(item.share for item in found) == pytest.approx(1)
    few = dataclasses.replace(sweep, trials=sweep.trials[:6])
    assert importance(few) == []


def test_the_surface_follows_the_trials_and_stays_within_them() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([10 ** rng.uniform(-1, 2, 60), 10 ** rng.uniform(-3, 1, 60)], axis=1)
    values = np.array([peak_psnr(a, b, 0.02) for a, b in points])
    surface = interpolate(points.tolist(), values, [True, True])
    assert surface is not None
    x, y, z = surface
    inside = np.isfinite(z)
    assert 0.5 < inside.mean() < 1, "nothing is drawn outside the trials"
    assert z[inside].min() >= values.min()
    assert z[inside].max() <= values.max()
    truth = np.array([[peak_psnr(a, b, 0.02) for a in x] for b in y])
    assert np.abs(z - truth)[inside].mean() < 0.1 * np.ptp(values)


@pytest.mark.parametrize("points", [[[1.0, 1.0]] * 8, [[float(i), float(i)] for i in range(1, 9)], [[1.0, 2.0]]])
def test_trials_that_span_no_area_have_no_surface(points: list[list[float]]) -> None:
    assert interpolate(points, np.arange(len(points), dtype=float), [False, False]) is None


@pytest.mark.parametrize(
    ("space", "parameters"),
    [
        (
            {"loss.adversarial": "choice('wasserstein', 'bce')"},
            [{"loss.adversarial": w} for w in ("wasserstein", "bce")],
        ),
        ({"loss.b": "uniform(0, 1)"}, [{"loss.b": 0.0}, {"loss.b": 1.0}]),
        ({"critic.clip": "choice(None, 0.01)"}, [{"critic.clip": None}, {"critic.clip": 0.01}]),
    ],
)
def test_words_zeros_and_nothing_are_drawn_too(
    tmp_path: Path, space: dict[str, str], parameters: list[dict[str, Any]]
) -> None:
    folder = SweepFolder(str(tmp_path / "odd"))
    folder.create(yaml.safe_dump({"sweep": {"metric": "nmse", "space": space}, "name": "odd"}))
    for number, values in enumerate(parameters):
        metrics = {"val/nmse": 0.1 / (number + 1)}
        folder.write_trial(
            TrialRecord(
                id=f"t{number}", state="finished", parameters=values, metrics=metrics, began=number, seconds=1.0
            )
        )
    write_report(tmp_path / "page.html", [folder.url])
    text = text_of(tmp_path / "page.html")
    assert "best val/nmse, trial t1" in text, "less is better"
    assert "Importance of the keys takes 10 trials" in text


def test_a_sweep_that_goes_on_is_reported_with_what_still_runs(tmp_path: Path) -> None:
    folder = write_sweep(str(tmp_path / "young"), num_trials=4)
    folder.store.delete("trials/t02/trial.json")
    trial = next(trial for trial in read_sweep(folder.url).trials if trial.id == "t02")
    assert (trial.state, trial.step) == ("running", 40)
    assert set(trial.parameters) == set(SPACE)
    write_report(tmp_path / "page.html", [folder.url])
    assert "not finished: this is what there is so far" in text_of(tmp_path / "page.html")


def test_a_run_is_reported_with_its_curves_and_a_table_of_its_steps(folder: SweepFolder, tmp_path: Path) -> None:
    run = folder.trial_run("t00")
    written = write_report(tmp_path / "page.html", [run.url])
    assert [path.name for path in written] == ["page.html", "page-t00-steps.csv"]
    text = text_of(tmp_path / "page.html")
    assert all(title in text for title in ("Training losses", "Adversarial terms", "Validation: PSNR"))
    with written[1].open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 41))


def test_a_long_line_is_thinned_to_what_a_page_can_show() -> None:
    """Its end and every peak stay."""
    points = [(float(step), 1.0 + step % 7 / 10) for step in range(1, 100_001)]
    points[54_321], points[77_777] = (54_322.0, 90.0), (77_778.0, 0.01)
    shown = thinned(points)
    assert len(shown) <= 4001
    assert set(shown) <= set(points)
    assert list(shown) == sorted(set(shown))
    assert shown[-1] == points[-1]
    assert {points[54_321], points[77_777]} <= set(shown)
    assert thinned(points[:4000]) == points[:4000]
    assert thinned([]) == []


def test_what_restarts_have_cost_a_run_stands_in_the_page(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "runs" / "twice"))
    run.create(yaml.safe_dump({"training": {"num_steps": 100}}))
    figures = {"loss": 1.0, "training_seconds": 30.0}
    for number, step in enumerate((20, 40)):
        reports = Reports(run.store, Attempt.begin(run.store, 1, 20 * number, time.time() - 60), tmp_path)
        reports.add(step, figures)
        reports.close()
    write_report(tmp_path / "page.html", [run.url])
    text = text_of(tmp_path / "page.html")
    assert re.search(r"<b>(49|50) %</b><span>goodput", text)
    assert "1 restart<" in text


def test_pictures_of_the_best_on_real_slices(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    folder = write_sweep(str(tmp_path / "small"), num_trials=2, data_url=tiny_heads)
    write_report(tmp_path / "page.html", [folder.url])
    assert '<img src="data:image/png;base64,' in text_of(tmp_path / "page.html")
    assert "Split validation, step 40" in text_of(tmp_path / "page.html")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run here"):
        write_report(tmp_path / "page.html", [str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="nothing to report on"):
        write_report(tmp_path / "page.html", [])
    assert not (tmp_path / "page.html").exists()


def test_the_page_names_the_volumes_of_an_evaluation(tmp_path: Path) -> None:
    mean = {"psnr": 31.25, "ssim": 0.9, "mse": 1e-3, "rmse": 0.03, "nmse": 0.01, "hfen": 0.4321, "seconds": 0.002}
    summary: dict[str, Any] = {
        "preset": "fastmri",
        "definition": "by volume",
        "split": "test",
        "volumes": ["ann-1", "ann-2"],
    }
    mask = {"kind": "radial", "achieved_ratio": 0.25, "sha256": "ab" * 32}
    means = {"zero_filled": mean, "my_model": mean}
    cell: dict[str, Any] = {"label": "8×8, radial 25 %", "mask": mask, "mean": means, "figure": "a.png"}
    cell["caption"] = "8×8: mean over 1 subject (2 volumes, 3 slices, one in 3 of each volume)"
    summary |= {"subjects": ["ann"], "num_slices": 9, "cells": [cell]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_report(tmp_path / "page.html", [], tmp_path)
    page = (tmp_path / "page.html").read_text()
    for expected in ("Split <b>test</b>: ann-1, ann-2, 9 slices", "31.250", "HFEN", "0.4321", "25.00 % of k-space"):
        assert expected in page
    assert cell["caption"] in page, "which slices the figures are of"
    assert "<td>my_model</td>" in page, "a name that can be typed"
    assert "GMSD" not in page, "the evaluation is older than that metric"
    (tmp_path / "summary.json").write_text(json.dumps({key: value for key, value in summary.items() if key != "cells"}))
    with pytest.raises(InputError, match="older version"):
        write_report(tmp_path / "page.html", [], tmp_path)


def test_the_page_names_the_sources_of_the_data(tmp_path: Path) -> None:
    """A volume of one file, and one of several, as the run recorded them."""
    digests = ["ab" * 32, "cd" * 32, "ef" * 32]
    files = [{"file": f"scan{number}.dcm", "sha256": digest} for number, digest in enumerate(digests)]
    sources = [
        {"volume": "ann-1", "subject": "ann", "files": files[:1], "licence": "CC0", "package": "p", "version": "7.1"},
        {"volume": "ann-2", "subject": "ann", "files": files[1:], "licence": "not stated"},
    ]
    splits = {"train": {"num_slices": 2, "subjects": ["ann"], "volumes": []}}
    run = RunFolder(str(tmp_path / "run"))
    run.create("name: mine\n")
    data = {"url": "somewhere", "sha256": digests[0], "splits": splits, "sources": sources}
    run.store.write("origin.json", json.dumps({"data": data}).encode())
    run.store.write("environments/a.json", json.dumps({"began": 1.0, "versions": {"torch": "2.99"}}).encode())
    write_report(tmp_path / "page.html", [run.url])
    page = text_of(tmp_path / "page.html")
    for text in ("ann-1", "ann-2", "scan0.dcm<", "scan1.dcm, …", "p 7.1", "CC0", "not stated", "torch 2.99"):
        assert text in page
    assert digests[0][:16] in page
    assert digests[1][:16] in page


def test_trials_that_were_stopped_compare_with_the_others_at_the_same_step(sweep: Sweep) -> None:
    step = sweep.common_step
    assert step is not None
    assert step == min(trial.curve(sweep.metric)[0][-1] for trial in sweep.rated)
    for trial in sweep.rated:
        seen = [value for at, value in zip(*trial.curve(sweep.metric), strict=True) if at <= step]
        assert sweep.value_until(trial, step) == max(seen)
        assert sweep.value_until(trial, None) == trial.value
    finished = dataclasses.replace(sweep, trials=[trial for trial in sweep.trials if trial.state == "finished"])
    assert finished.comparable == {trial.id: trial.value for trial in finished.trials}


def test_the_best_compares_with_a_starting_point_that_ended_early_at_its_end(sweep: Sweep, tmp_path: Path) -> None:
    early, best = next(trial for trial in sweep.trials if trial.state == "stopped"), sweep.best
    assert best is not None
    assert early.value is not None
    config = {**sweep.config, "loss": dict(sweep.config["loss"]), "critic": dict(sweep.config["critic"])}
    for key, value in early.parameters.items():
        section, name = key.split(".")
        config[section][name] = value
    gain, against = gain_of(dataclasses.replace(sweep, config=config)) or (0.0, "")
    ours = max(value for step, value in zip(*best.curve(sweep.metric), strict=True) if step <= early.step)
    assert early.value is not None
    assert best.value is not None
    assert gain == pytest.approx(ours - early.value)
    assert gain < best.value - early.value
    assert f"until step {early.step}, which that reached" in against


@pytest.mark.parametrize("state", ["stopped", "finished", "diverged", "failed"])
def test_the_reports_best_is_what_pull_brings(folder: SweepFolder, tmp_path: Path, state: State) -> None:
    """Also if it was stopped, and of equal ones; what diverged or failed is not brought."""
    copied = SweepFolder(str(tmp_path / "laptop"))
    shutil.copytree(folder.url, copied.url)
    for wanted in ("t03", "t07"):
        record = next(trial for trial in copied.trials() if trial.id == wanted)
        copied.write_trial(dataclasses.replace(record, state=state, metrics={"val/psnr": 99.0}))
    best = read_sweep(copied.url).best
    assert best is not None
    assert best.id == choose_run(copied.url, "psnr").run.url.rsplit("/", 1)[-1]
    assert (best.id == "t03") == (state in ("stopped", "finished"))
    text = (write_report(tmp_path / "report.html", [copied.url])[0]).read_text()
    assert f"best val/psnr, trial {best.id}<" in text


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """By PSNR and HFEN, with three seeds at the starting point and the critic's share. Not to be changed."""
    url = str(tmp_path_factory.mktemp("sweeps") / "traded")
    return read_sweep(write_sweep(url, metric=["psnr", "hfen"], start_seeds=3, shares=True).url)


@pytest.fixture(scope="module")
def traded_page(traded: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [traded.folder.url])
    return path


def test_of_two_metrics_the_best_is_what_pull_brings(traded: Sweep) -> None:
    assert traded.best is not None
    assert choose_run(traded.folder.url).run.url.endswith(f"trials/{traded.best.id}")


def test_the_front_stands_in_page_and_table(traded: Sweep, traded_page: Path) -> None:
    text, names = text_of(traded_page), [trial.id for trial in traded.front]
    assert len(names) >= 3
    assert traded.best in traded.front
    table = text.partition("The best trade-offs")[2].partition("</table>")[0]
    assert re.findall(r"<td>(t\d\d)</td>", table) == names
    assert "Front of best trade-offs" in text
    for what in ("Curves of all trials", "Importance of each key", "Landscape: loss.a × loss.b", "Slice: loss.b"):
        assert all(f"<h3>{what}: val/{name}</h3>" in text for name in ("psnr", "hfen"))
    with (traded_page.parent / "report-traded-trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["trial"] for row in rows if row["front"] == "true") == sorted(names)
    shares = {float(row["share/content"]) for row in rows if row["share/content"]}
    assert shares == {trial.balance["share/content"] for trial in traded.trials if trial.balance}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_the_front(traded_page: Path) -> None:
    titles = "[...document.querySelectorAll('.charts h3')].map(h => h.textContent)"
    shapes = "[...document.querySelectorAll('.plotly-graph-div')].map(d => d.querySelectorAll('.trace path').length)"
    seen = visit(traded_page, [titles, shapes])
    assert seen.errors == []
    headings, counts = seen.answers
    assert counts[headings.index("Front of best trade-offs")] >= 20


def test_a_sweep_by_one_metric_has_no_front(page: Path, sweep: Sweep) -> None:
    assert sweep.front == []
    assert "trade-offs" not in text_of(page)
    assert "What drove each trial" not in text_of(page)
    assert "front" not in (page.parent / "report-laptop-trials.csv").read_text().splitlines()[0]


def test_seen_by_the_other_metric_the_values_change_and_the_best_does_not(traded: Sweep) -> None:
    other = traded.seen_by("hfen")
    assert (other.metric, other.higher_is_better) == ("val/hfen", False)
    values = [trial.value for trial in other.rated if trial.value is not None]
    assert values == sorted(trial.metrics["val/hfen"] for trial in traded.trials if trial.metrics)
    assert traded.best is not None
    assert other.best is not None
    assert (other.best.id, [trial.id for trial in other.front]) == (
        traded.best.id,
        [trial.id for trial in sorted(traded.front, key=lambda trial: trial.metrics["val/hfen"])],
    )
    step = other.common_step
    assert step is not None
    for trial in other.rated:
        seen = [value for at, value in zip(*trial.curve("val/hfen"), strict=True) if at <= step]
        assert other.comparable[trial.id] == min(seen)


def test_shares_and_scores_stand_beside_the_searched_values(traded: Sweep, traded_page: Path) -> None:
    table = text_of(traded_page).partition("What drove each trial")[2].partition("</table>")[0]
    for key in ("share/adversarial", "share/content", "share/frequency", "score/real", "score/fake"):
        assert f"<th>{key}</th>" in table
    assert table.count("<tr") == 1 + sum(bool(trial.balance) for trial in traded.trials)
    assert f"{100 * traded.trials[0].balance['share/content']:.2g} %" in table
    assert "+0.4" in table


def test_the_spread_over_points_stands_beside_that_over_seeds(traded: Sweep, traded_page: Path) -> None:
    psnr, hfen, *others = spreads(traded)
    assert [psnr.name, hfen.name, *(item.name for item in others)][:3] == ["psnr", "hfen", "ssim"]
    finished = [trial.metrics["val/psnr"] for trial in traded.trials if trial.state == "finished"]
    assert psnr.over_points == pytest.approx(np.std(finished, ddof=1))
    assert psnr.over_seeds == pytest.approx(0.2), "three seeds, 0.2 dB from one to the next"
    assert (psnr.num_points, psnr.num_trainings) == (len(finished), 3)
    table = text_of(traded_page).partition("more than noise?")[2].partition("</table>")[0]
    assert f"<td>PSNR (dB)</td><td>{psnr.over_points:.3g}</td><td>{len(finished)}</td><td>0.2</td><td>3</td>" in table


def test_trials_that_differ_in_the_seed_alone_are_one_point(sweep: Sweep) -> None:
    one, two, *_ = [trial for trial in sweep.trials if trial.state == "finished"]
    again = [
        dataclasses.replace(one, metrics={"val/psnr": value}, parameters={**one.parameters, "seed": seed})
        for seed, value in enumerate((28.0, 29.0))
    ]
    (found, *_) = spreads(
        dataclasses.replace(sweep, trials=[*again, dataclasses.replace(two, metrics={"val/psnr": 30.0})])
    )
    assert (found.num_points, found.num_trainings) == (2, 2)
    assert found.over_seeds == pytest.approx(0.5**0.5)
    assert found.over_points == pytest.approx(np.std([28.5, 30.0], ddof=1))


def test_without_seeds_the_noise_is_called_unknown(sweep: Sweep, page: Path) -> None:
    assert all(item.over_seeds is None for item in spreads(sweep))
    assert "sweep.start_seeds=3" in text_of(page)


@pytest.mark.parametrize(
    ("above", "text"),
    [
        (0.1, "none (within the noise between seeds: ±0.2)"),
        (-0.1, "none (within the noise between seeds: ±0.2)"),
        (1.0, "+1.0000 (noise between seeds ±0.2)"),
    ],
)
def test_a_gain_within_the_noise_is_none(tmp_path: Path, above: float, text: str) -> None:
    folder = write_sweep(str(tmp_path / "small"), num_trials=3, start_seeds=3)
    start, *others = folder.trials()
    for trial in others:
        figures = {**trial.metrics, "val/psnr": start.metrics["val/psnr"] + above}
        folder.write_trial(dataclasses.replace(trial, metrics=figures))
    (gain,) = gains(read_sweep(folder.url))
    assert gain.text == (text if above > 0 else "none (the starting point is the best)")
    assert "against the starting point" in gain.against
    write_report(tmp_path / "page.html", [folder.url])
    headline, _, rest = gain.text.partition(" ")
    assert f"<b>{headline}</b><span>{rest} val/psnr against the starting point" in text_of(tmp_path / "page.html")


def test_of_two_metrics_a_worse_one_is_called_so(traded: Sweep) -> None:
    assert traded.start is not None
    figures = {"start": (20.0, 0.90), "chosen": (29.0, 0.93), "sharp": (10.0, 0.5), "smooth": (30.0, 2.0)}
    trials = []
    for number, (name, (psnr, hfen)) in enumerate(figures.items()):
        values = traded.start.parameters if name == "start" else {"loss.a": float(number)}
        own: dict[str, Any] = {
            "id": name,
            "value": psnr,
            "metrics": {"val/psnr": psnr, "val/hfen": hfen},
            "parameters": values,
        }
        trials.append(dataclasses.replace(traded.start, **own, seeds=traded.start.seeds if name == "start" else ()))
    found = dataclasses.replace(traded, trials=trials)
    assert [trial.id for trial in found.front] == ["sharp", "start", "chosen", "smooth"]
    first, second = gains(found)
    assert first.text == "+9.0000 (noise between seeds ±0.2)"
    noise = f"{np.std([metrics['val/hfen'] for metrics in traded.start.seeds], ddof=1):.2g}"
    assert second.text == f"+0.0300 (noise between seeds ±{noise}, worse)"


def test_the_search_starts_from_the_values_in_its_overrides(sweep: Sweep) -> None:
    """The experiment may train with others than the search starts from, as `laptop` does."""
    assert sweep.start is not None
    loss = {**sweep.config["loss"], "a": 60}
    overridden = {**sweep.config["sweep"], "overrides": {"loss.a": sweep.start.parameters["loss.a"]}}
    other = dataclasses.replace(sweep, config={**sweep.config, "loss": loss, "sweep": overridden})
    assert other.start == sweep.start
    assert dataclasses.replace(sweep, config={**sweep.config, "loss": loss}).start is None
