"""Reconstruction: physics, networks, losses, metrics and the training loop of one worker."""
