"""Look at data sets, scans, models and results in a browser."""
