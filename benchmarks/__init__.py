"""Benchmarks of natgrad: run them from the root of a checkout, as `python -m benchmarks.…`."""
