"""Everything that runs a training: experiment, Ray Train, submit, checkpoints of a run, pull."""
