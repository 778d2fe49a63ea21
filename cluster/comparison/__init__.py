"""Grids of trainings, and their tables."""
