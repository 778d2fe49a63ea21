"""Ray: clusters, workers and jobs."""
