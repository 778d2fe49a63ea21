"""A training begins: claim its folder, train in this process."""
