"""A run's folder in the store, and what is read from it."""
