"""Decoding: pictures of what a person saw, from fMRI. A task of its own, and no reconstruction of a measurement."""
