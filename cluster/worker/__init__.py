"""One rank: its checkpoints, its heartbeat, its end."""
