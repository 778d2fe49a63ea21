"""What a training's driver makes of Ray's errors: a sentence, where there is one."""

from __future__ import annotations

import subprocess
import sys

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway

# imported in the tests: Ray looks at its authentication's variables when it is imported, and other tests set them


def group_error(**failures: Exception) -> Exception:
    import ray.train

    return ray.train.WorkerGroupError("…", {int(rank[1:]): error for rank, error in failures.items()})


def test_workers_that_died_too_often_are_named_with_their_last_words() -> None:
    from larmor.cluster.on_ray.ray_backend import describe_failure

    told = describe_failure(group_error(r1=RuntimeError("out of memory"), r0=RuntimeError("the peer left")), 3)
    assert told is not None
    assert "4 times, once more than cluster.max_failures=3" in told
    assert "rank 0: the peer left; rank 1: out of memory" in told


def test_other_errors_are_left_alone() -> None:
    from larmor.cluster.on_ray.ray_backend import describe_failure

    assert describe_failure(RuntimeError("no workers here"), 3) is None


def test_a_mistake_is_found_behind_its_followers() -> None:
    from larmor.cluster.on_ray.ray_backend import mistake_of

    outer = RuntimeError("failed")
    outer.__cause__ = InputError("slice 3 is not finite")
    found = mistake_of(group_error(r0=RuntimeError("the peer left"), r1=outer))
    assert str(found) == "slice 3 is not finite"


def test_a_store_that_is_away_is_no_mistake() -> None:
    from larmor.cluster.on_ray.ray_backend import mistake_of

    assert mistake_of(group_error(r0=StoreAway("the store does not answer"))) is None


def test_what_driver_and_controller_share_needs_no_pytorch() -> None:
    modules = (
        "larmor.cluster.on_ray.ray_backend, ray.train.v2.api.data_parallel_trainer, larmor.tuning.search.tune_trial"
    )
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
