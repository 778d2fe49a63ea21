"""Processor time of the imports before a training on Ray: `python benchmarks/imports.py [--runs 5]`.

Beside each import of Larmor's processes stands the one that it takes the place of. All take turns, each in a process of
its own; the median is printed, less that of an empty process with PyTorch where the import needs it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

DEEPSPEED = "from larmor.recon.engines.deepspeed_engine import import_deepspeed; import torch"
IMPORTS = {
    "DeepSpeed, as it comes": f"{DEEPSPEED}; import deepspeed; deepspeed.ops.__compatible_ops__['deepspeed_shm_comm']",
    "DeepSpeed, as Larmor does": f"{DEEPSPEED}; import_deepspeed(torch.device('cpu'))",
    "Ray Train with TorchConfig": "import ray.train.torch",
    "Ray Train in driver and controller": "import ray.train.v2.api.data_parallel_trainer",
}
BASES = {name: DEEPSPEED if code.startswith(DEEPSPEED) else "pass" for name, code in IMPORTS.items()}


def seconds(code: str) -> float:
    """Processor time of a process that runs `code`, and of those that it starts."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(options.runs):
        for name, code in IMPORTS.items():
            found[name].append(seconds(code) - seconds(BASES[name]))
    print("| import | s |\n|---|---|")
    for name, taken in found.items():
        print(f"| {name} | {statistics.median(taken):.2f} |", flush=True)


if __name__ == "__main__":
    main()
