"""Tables: models and classical methods side by side."""
