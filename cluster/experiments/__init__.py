"""An experiment: one YAML file and its overrides."""
