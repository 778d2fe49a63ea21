"""A trained model in use: load, reconstruct, export."""
