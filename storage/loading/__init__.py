"""From a data set to batches: in which order, from where, how."""
