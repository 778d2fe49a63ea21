"""A slot: warm worker processes under Ray Train that train one trial after another."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from larmor.cluster.experiments.experiment import Experiment, build, get_dotted
from larmor.cluster.launch.run import claim, finish
from larmor.cluster.on_ray.ray_worker import RayWorker
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.stopping import StopRequest
from larmor.cluster.worker.worker import LocalWorker
from larmor.recon.recipe.metric import HIGHER_IS_BETTER
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway
from larmor.tuning.search.space import with_values
from larmor.tuning.search.sweep_folder import SweepFolder

Call = Callable[..., Any]  # a method of the desk by name, with this slot's arguments; on rank 0 only


class Interrupted(Exception):
    """The workers' machine is taken away. Raised by all ranks; Ray starts the slot again where there is room."""


class SlotWorker(RayWorker):
    """A rank of a slot: shows every validation to the sweep, and ends the trial if the scheduler says so.

    `stop_reason` is what the scheduler said, on all ranks.
    """

    def __init__(
        self,
        run: RunFolder,
        experiment: Experiment,
        device: torch.device,
        request: StopRequest | None = None,
        call: Call | None = None,
    ) -> None:
        super().__init__(run, experiment.training, device, request)
        self._experiment, self._call = experiment, call
        self.stop_reason: str | None = None
        self._last: dict[str, Any] = {"step": 0}

    def claim(self) -> bool:
        """Make the run folder the trial's; True if the training has finished already."""
        return self._on_rank_0(self._claim)

    def conclude(self, end: Mapping[str, Any]) -> dict[str, Any]:
        """`end` (state, reason) with metrics of the best checkpoint, last figures, steps and images."""
        return self._on_rank_0(lambda: {**end, **self._figures(finished=end["state"] == "finished")})

    def report(self, step: int, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> bool:
        super().report(step, metrics, history)
        rated = {name: value for name, value in metrics.items() if name.startswith("val/")}
        self._last = {**self._last, "step": step, **rated}
        # the last validation counts with the trial's end, when its checkpoint is there too
        if not rated or step == self._experiment.training.num_steps or self._call is None:
            return False
        reason = self._call("report", {"step": step, **rated}) if self.rank == 0 else None
        self.stop_reason = self.gather(reason)[0]
        return self.stop_reason is not None

    def _claim(self) -> bool:
        claim(self._experiment, self._run)
        return self._run.result() is not None

    def _figures(self, finished: bool) -> dict[str, Any]:
        training = self._experiment.training
        metrics: Mapping[str, float] = {}
        if finished:
            metrics = finish(self._experiment, self._run)["metrics"]
        else:
            with contextlib.suppress(InputError):  # it ended before its first checkpoint
                name = training.best_metric
                metrics = self._run.best(f"val/{name}", HIGHER_IS_BETTER[name]).metrics
        steps = max([self._last["step"], *(item.step for item in self._run.checkpoints())])
        counts = {"steps": steps, "num_images": steps * training.global_batch_size}
        return {"metrics": dict(metrics), "last": self._last, "seed": self._experiment.seed, **counts}


def serve(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker process of a slot: trials, until there are no more."""
    import ray
    import ray.train.torch

    from larmor.cluster.on_ray.ray_backend import this_process_request

    base = build(config["experiment"], Experiment, "sweep")
    torch.set_num_threads(base.cluster.cpus_per_worker)
    folder, device = SweepFolder(config["sweep_url"], config["lease"]), ray.train.torch.get_device()
    request = this_process_request(base.cluster.grace_seconds)
    ranks = LocalWorker(RunFolder(folder.url), base.training, device, request)
    desk = ray.get_actor(config["desk"])

    def call(method: str, *arguments: Any) -> Any:
        return ray.get(getattr(desk, method).remote(config["slot"], *arguments))

    while (job := ranks.gather(call("take") if ranks.rank == 0 else None)[0]) is not None:
        if not job:
            continue
        try:
            num_seeds = config["num_seeds"]
            if is_start(base, job["parameters"]):
                num_seeds = max(num_seeds, config["start_seeds"])
            outcome = _train_trial(base, folder, job, num_seeds, ranks, call)
        except LeaseLost as error:  # on all ranks alike: another process runs the sweep now
            call("evict", str(error))
            return
        if ranks.rank == 0:
            call("end", outcome)
        gc.collect()  # engines hold themselves in circles
        if device.type == "cuda":
            torch.cuda.empty_cache()


def is_start(base: Experiment, parameters: Mapping[str, Any]) -> bool:
    """Whether a trial has the experiment's own values."""
    return all(get_dotted(base, key) == value for key, value in parameters.items())


def _train_trial(
    base: Experiment, folder: SweepFolder, job: Mapping[str, Any], num_seeds: int, ranks: LocalWorker, call: Call
) -> dict[str, Any]:
    """Train a trial to its end, whatever it is, and record it; the outcome for Tune: state and metrics."""
    trial, parameters, started = job["trial"], job["parameters"], time.time()
    began, before = folder.begin_trial(trial, parameters) if ranks.rank == 0 else (started, 0.0)
    ends: list[dict[str, Any]] = []
    for number in range(num_seeds):
        seed = parameters.get("seed", base.seed) + number
        try:
            experiment = with_values(base, {**parameters, "seed": seed}, name=trial)
        except InputError as error:
            ends.append({"state": "failed", "reason": str(error)})
            break
        worker = SlotWorker(
            folder.trial_run(trial, number), experiment, ranks.device, ranks.request, call if number == 0 else None
        )
        ends.append(_train_seed(experiment, worker, call))
        if ends[-1]["state"] != "finished":
            break
    record = combined(ends) | {"parameters": parameters, "began": began, "seconds": before + time.time() - started}
    if ranks.rank == 0:
        folder.write_trial(trial, record)
    metrics = record["metrics"] if record["state"] == "finished" else {}  # none: the sampler counts it as worst
    return {"state": record["state"], "step": record["last"]["step"], **metrics}


def _train_seed(experiment: Experiment, worker: SlotWorker, call: Call) -> dict[str, Any]:
    """How one training of a trial ended (see `SlotWorker.conclude`); the same on all ranks."""
    from larmor.recon.training.history import TrainingDiverged
    from larmor.recon.training.train import train

    end = {"state": "finished"}
    try:
        with worker.watched(experiment.cluster.hang_seconds), worker:
            try:
                if not worker.claim() and not train(experiment, worker):
                    asked = worker.request.reason or "another rank was asked to stop"
                    end = {"state": "interrupted", "reason": asked}
                    if worker.stop_reason:
                        end = {"state": "stopped", "reason": worker.stop_reason}
            except TrainingDiverged as error:
                end = {"state": "diverged", "reason": str(error)}
    except (LeaseLost, StoreAway):
        raise
    except InputError as error:
        end = {"state": "failed", "reason": str(error)[:2000]}
        if worker.world_size > 1:  # the other ranks may not have met it, and wait for this one: a new start frees them
            call("fail", end["reason"])
            raise
    if end["state"] == "interrupted":  # its checkpoint is saved; any free slot resumes from there
        if worker.rank == 0:
            call("give_back")
        raise Interrupted(end["reason"])
    return worker.conclude(end)


def combined(ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of a trial's seeds: metrics are means, steps and images sums; the state is the last one's."""
    shared = set.intersection(*(set(end.get("metrics", {})) for end in ends))
    record = {
        "state": ends[-1]["state"],
        "metrics": {name: sum(end["metrics"][name] for end in ends) / len(ends) for name in sorted(shared)},
        "last": ends[-1].get("last", {"step": 0}),
        "steps": sum(end.get("steps", 0) for end in ends),
        "num_images": sum(end.get("num_images", 0) for end in ends),
    }
    if "reason" in ends[-1]:
        record["reason"] = ends[-1]["reason"]
    return record | ({"seeds": list(ends)} if len(ends) > 1 else {})
