"""From a generator to images and their metrics."""
