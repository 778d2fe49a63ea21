"""What the first import of DeepSpeed in a process brings along, and what it leaves out."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.util, sys
import torch
from larmor.recon.engines.deepspeed_engine import import_deepspeed

started = []
sys.addaudithook(lambda event, given: started.append(given[1]) if event == "subprocess.Popen" else None)
import_deepspeed(torch.device("cpu"))
print("mlflow" in sys.modules, started)
if importlib.util.find_spec("mlflow"):
    import mlflow
    print(mlflow.__name__)
"""


def test_no_tracker_is_imported_for_it_no_compiler_tried_and_mlflow_stays_importable() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() in (["False []"], ["False []", "mlflow"])
