"""Reconstruct at the scanner: the MRD streaming protocol."""
