"""From scans to a data set, and its verification."""
