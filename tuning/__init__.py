"""The search: its space, one trial, Ray Tune and its report."""
