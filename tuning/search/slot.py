"""A slot: warm worker processes under Ray Train that train one trial after another."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from larmor.cluster.experiments.experiment import Experiment, build, get_dotted
from larmor.cluster.launch.run import claim, finish
from larmor.cluster.on_ray.ray_gauges import set_ray_gauge
from larmor.cluster.on_ray.ray_worker import preemption_notice
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.stopping import StopRequest
from larmor.cluster.worker.tracker import Sweep
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.training import train_recipe
from larmor.cluster.worker.worker import RunWorker
from larmor.recon.recipe.own_code import use_pinned_code
from larmor.recon.recipe.own_metric import find_metric
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway
from larmor.tuning.search.desk import Job, Outcome
from larmor.tuning.search.records import BegunTrial, Figures, Parameters, TrainingEnd, TrialRecord
from larmor.tuning.search.slots import SlotConfig
from larmor.tuning.search.space import with_values
from larmor.tuning.search.sweep_folder import SweepFolder

Call = Callable[..., Any]  # a method of the desk by name, with this slot's arguments; on rank 0 only


class Interrupted(Exception):
    """The workers' machine is taken away. Raised by all ranks; Ray starts the slot again where there is room."""


@dataclass(frozen=True)
class SlotRank:
    """What a worker process of a slot keeps from one trial to the next."""

    ranks: Ranks
    device: torch.device
    request: StopRequest
    call: Call


class TrialTraining:
    """One training of a trial, as the sweep sees it: all ranks call its methods, at the same step.

    With a `call` every validation is shown to the sweep; `stop_reason` is what the scheduler said, on all ranks.
    """

    def __init__(
        self,
        run: RunFolder,
        experiment: Experiment,
        ranks: Ranks,
        call: Call | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.run, self.experiment, self.tracking = run, experiment, tracking
        self.stop_reason: str | None = None
        self._ranks, self._call = ranks, call
        self._last: dict[str, float] = {"step": 0}

    def claim(self) -> bool:
        """Make the run folder the trial's; True if the training has finished already."""
        return self._ranks.on_rank_0(self._claim)

    def conclude(self, end: TrainingEnd) -> TrainingEnd:
        """`end` (state, reason) with metrics of the best checkpoint, last figures, steps and images."""
        return self._ranks.on_rank_0(lambda: self._with_figures(end))

    def judge(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the scheduler ends the trial, after a report of these metrics."""
        rated = {name: value for name, value in metrics.items() if name.startswith("val/")}
        self._last = {**self._last, "step": step, **rated}
        # the last validation counts with the trial's end, when its checkpoint is there too
        if not rated or step == self.experiment.training.num_steps or self._call is None:
            return False
        reason = self._call("report", {"step": step, **rated}) if self._ranks.rank == 0 else None
        self.stop_reason = self._ranks.gather(reason)[0]
        return self.stop_reason is not None

    def _claim(self) -> bool:
        claim(self.experiment, self.run)
        return self.run.result() is not None

    def _with_figures(self, end: TrainingEnd) -> TrainingEnd:
        training = self.experiment.training
        metrics: Figures = {}
        if end.state == "finished":
            metrics = finish(self.experiment, self.run).metrics
        else:
            with contextlib.suppress(InputError):  # it ended before its first checkpoint
                name = training.best_metric
                metrics = self.run.best(f"val/{name}", find_metric(name).higher_is_better).metrics
        steps = max([int(self._last["step"]), *(item.step for item in self.run.checkpoints())])
        return dataclasses.replace(
            end,
            metrics=dict(metrics),
            last=self._last,
            seed=self.experiment.seed,
            steps=steps,
            num_images=steps * training.global_batch_size * self.experiment.data.stack,
        )


def serve(config: SlotConfig) -> None:
    """What Ray Train runs in each worker process of a slot: trials, until there are no more."""
    import ray
    import ray.train.torch

    from larmor.cluster.on_ray.ray_backend import this_process_request

    base = build(config.experiment, Experiment, "sweep")
    use_pinned_code(base.code)
    torch.set_num_threads(base.cluster.cpus_per_worker)
    folder, device = SweepFolder(config.sweep_url, config.lease), ray.train.torch.get_device()
    request = this_process_request(base.cluster.grace_seconds)
    desk = ray.get_actor(config.desk)

    def call(method: str, *arguments: Any) -> Any:
        return ray.get(getattr(desk, method).remote(config.slot, *arguments))

    with contextlib.closing(Ranks()) as ranks:
        _train_trials(config, base, folder, SlotRank(ranks, device, request, call))


def _train_trials(config: SlotConfig, base: Experiment, folder: SweepFolder, slot: SlotRank) -> None:
    """Train one trial after another, until the desk has no more or another process runs the sweep."""
    ranks, call = slot.ranks, slot.call
    while (job := ranks.gather(call("take") if ranks.rank == 0 else None)[0]) is not None:
        if job == "wait":
            continue
        try:
            num_seeds = config.num_seeds
            if is_start(base, job.parameters):
                num_seeds = max(num_seeds, config.start_seeds)
            outcome = _train_trial(base, folder, job, num_seeds, slot)
        except LeaseLost as error:  # on all ranks alike: another process runs the sweep now
            call("evict", str(error))
            return
        if ranks.rank == 0:
            call("end", outcome)
        gc.collect()  # engines hold themselves in circles
        if slot.device.type == "cuda":
            torch.cuda.empty_cache()


def is_start(base: Experiment, parameters: Parameters) -> bool:
    """Whether a trial has the experiment's own values."""
    return all(get_dotted(base, key) == value for key, value in parameters.items())


def _train_trial(base: Experiment, folder: SweepFolder, job: Job, num_seeds: int, slot: SlotRank) -> Outcome:
    """Train a trial to its end, whatever it is, and record it; the outcome for Tune."""
    trial, parameters, started = job.trial, job.parameters, time.time()
    ranks = slot.ranks
    begun = folder.begin_trial(trial, parameters) if ranks.rank == 0 else BegunTrial(parameters, started)
    ends: list[TrainingEnd] = []
    for number in range(num_seeds):
        seed = parameters.get("seed", base.seed) + number
        try:
            experiment = with_values(base, {**parameters, "seed": seed}, name=trial)
        except InputError as error:
            ends.append(TrainingEnd(state="failed", reason=str(error)))
            break
        call = slot.call if number == 0 else None
        run = folder.trial_run(trial, number)
        tracking = Tracking(experiment, run, Sweep(base.name, folder.store), set_ray_gauge)
        ends.append(_train_seed(TrialTraining(run, experiment, ranks, call, tracking), slot))
        if ends[-1].state != "finished":
            break
    record = combined(trial, dataclasses.replace(begun, seconds=begun.seconds + time.time() - started), ends)
    if ranks.rank == 0:
        folder.write_trial(record)
    metrics = record.metrics if record.state == "finished" else {}
    return Outcome(record.state, step=int(record.last["step"]), metrics=metrics)


def _train_seed(training: TrialTraining, slot: SlotRank) -> TrainingEnd:
    """How one training of a trial ended (see `TrialTraining.conclude`); the same on all ranks."""
    from larmor.recon.training.history import TrainingDiverged

    experiment, ranks, request = training.experiment, slot.ranks, slot.request
    worker = RunWorker(
        ranks,
        training.run,
        experiment.training,
        slot.device,
        request,
        preemption_notice,
        training.judge,
        training.tracking,
    )
    end = TrainingEnd(state="finished")
    interrupted = ""
    try:
        with worker.watched(experiment.cluster.hang_seconds), worker:
            try:
                if not training.claim() and not train_recipe(experiment, worker):
                    if training.stop_reason:
                        end = TrainingEnd(state="stopped", reason=training.stop_reason)
                    else:
                        interrupted = request.reason or "another rank was asked to stop"
            except TrainingDiverged as error:
                end = TrainingEnd(state="diverged", reason=str(error))
    except (LeaseLost, StoreAway):
        raise
    except InputError as error:
        end, interrupted = TrainingEnd(state="failed", reason=str(error)[:2000]), ""
        if ranks.world_size > 1:  # the other ranks may not have met it, and wait for this one: a new start frees them
            slot.call("fail", end.reason)
            raise
    if interrupted:  # its checkpoint is saved; any free slot resumes from there
        if ranks.rank == 0:
            slot.call("give_back")
        raise Interrupted(interrupted)
    return training.conclude(end)


def combined(trial: str, begun: BegunTrial, ends: Sequence[TrainingEnd]) -> TrialRecord:
    """One record of a trial's seeds: metrics are means, steps and images sums; the state is the last one's."""
    shared = set.intersection(*(set(end.metrics) for end in ends))
    return TrialRecord(
        id=trial,
        state=ends[-1].state,
        metrics={name: sum(end.metrics[name] for end in ends) / len(ends) for name in sorted(shared)},
        last=ends[-1].last or {"step": 0},
        steps=sum(end.steps or 0 for end in ends),
        num_images=sum(end.num_images or 0 for end in ends),
        reason=ends[-1].reason,
        seeds=tuple(ends) if len(ends) > 1 else (),
        parameters=begun.parameters,
        began=begun.began,
        seconds=begun.seconds,
    )
