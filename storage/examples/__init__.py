"""Data to try Larmor with."""
