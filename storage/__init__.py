"""Bytes to batches: object store, sharded Zarr, formats in, order of samples, loader."""
