"""The fault suite as one command; the table it prints stands in docs/reliability.md.

    python -m tests.faults.suite [--only WORD ...] [--seeds 1 2 ...] [--to TABLE.md]

Every case is one training of tiny heads that is disturbed at a moment drawn from its seed, and must end as if it had
not been. Exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.local_faults import LOCAL_FAULTS, LOCAL_SETTINGS, local_training
from tests.faults.ray_faults import RAY_FAULTS, RayCluster, ray_cluster, ray_training
from tests.faults.scene import LOCAL, Scene, check, scene


@dataclass(frozen=True)
class Case:
    """One fault with one seed."""

    fault: str
    seed: int

    @property
    def on_ray(self) -> bool:
        return self.fault in RAY_FAULTS

    @property
    def name(self) -> str:
        return f"fault-{self.seed:02d}"


@dataclass(frozen=True)
class Outcome:
    case: Case
    done: str
    losses: str
    seconds: float
    problem: str = ""


CASES = [
    *(Case(fault, seed) for fault, (_, seeds) in LOCAL_FAULTS.items() for seed in seeds),
    *(Case(fault, seed) for fault, plan in RAY_FAULTS.items() for seed in plan.seeds),
]


def run_case(stage: Scene, cluster: RayCluster | None, case: Case) -> Outcome:
    """Inject one fault and check everything."""
    began, source = time.monotonic(), random.Random(case.seed)
    try:
        if case.on_ray:
            assert cluster is not None
            plan = RAY_FAULTS[case.fault]
            training = ray_training(stage, cluster, case.name, plan.workers, *plan.more)
            done = plan.inject(cluster, training, source)
            losses = check(training, undisturbed(stage, cluster, case), plan.exact)
        else:
            local_fault, _ = LOCAL_FAULTS[case.fault]
            training = local_training(stage, case.name, case.fault)
            done = local_fault(training, source)
            losses = check(training, undisturbed(stage, cluster, case), exact=True)
    except Exception as error:
        traceback.print_exc()
        return Outcome(case, "–", "–", time.monotonic() - began, f"{type(error).__name__}: {error}")
    return Outcome(case, done, losses, time.monotonic() - began)


def run_cases(cases: list[Case], show: Callable[[Outcome], None]) -> list[Outcome]:
    """All cases, one after another; the cluster of those that need Ray lives as long as they do."""
    outcomes = []
    with scene() as stage, contextlib.ExitStack() as undo:
        cluster: RayCluster | None = None
        for case in sorted(cases, key=lambda item: item.on_ray):
            if case.on_ray and cluster is None:
                cluster = undo.enter_context(ray_cluster())
            outcome = run_case(stage, cluster, case)
            show(outcome)
            outcomes.append(outcome)
    return outcomes


def undisturbed(stage: Scene, cluster: RayCluster | None, case: Case) -> list[dict[str, float]]:
    """The history of the same training without a fault; trained once. With a range of workers it is one process."""
    plan = RAY_FAULTS.get(case.fault)
    on_two = plan is not None and plan.exact
    more = plan.more if plan else LOCAL_SETTINGS.get(case.fault, ())
    name = "-".join(["undisturbed", "2" if on_two else "1", *(text.partition("=")[2] for text in more)])
    if name not in stage.undisturbed:
        assert cluster is not None or not on_two
        training = ray_training(stage, cluster, name) if on_two and cluster else stage.training(name, *LOCAL, *more)
        training.finish()
        stage.undisturbed[name] = training.run.history()
    return stage.undisturbed[name]


def table(outcomes: list[Outcome]) -> str:
    """Markdown: one line for each case, and the sums."""
    lines = ["| fault | seed | what was done | losses | seconds |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        verdict = f"**{outcome.problem.splitlines()[0]}**" if outcome.problem else outcome.losses
        case = outcome.case
        lines.append(f"| {case.fault} | {case.seed} | {outcome.done} | {verdict} | {outcome.seconds:.0f} |")
    bad = sum(bool(outcome.problem) for outcome in outcomes)
    total = sum(outcome.seconds for outcome in outcomes)
    lines += ["", f"{len(outcomes)} faults, {len(outcomes) - bad} as they should end, {total / 60:.0f} minutes."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="faults whose name contains one of these words")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="cases with these seeds")
    parser.add_argument("--to", type=Path, help="write the table to this file, too")
    chosen = parser.parse_args()
    cases = [
        case
        for case in CASES
        if (not chosen.only or any(word in case.fault for word in chosen.only))
        and (not chosen.seeds or case.seed in chosen.seeds)
    ]

    def show(outcome: Outcome) -> None:
        print(
            f"{outcome.case.name} {outcome.case.fault}: {outcome.done}; {outcome.losses} {outcome.problem}", flush=True
        )

    outcomes = run_cases(cases, show)
    text = table(outcomes)
    print(text)
    if chosen.to:
        chosen.to.write_text(text + "\n")
    sys.exit(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    main()
