"""File formats of MRI data, one module each; every one gives `Source`s."""
