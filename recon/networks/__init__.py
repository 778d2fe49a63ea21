"""Generators, critics and their parts."""
