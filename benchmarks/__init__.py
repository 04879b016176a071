"""Measurements; each file is one, run with `python -m benchmarks NAME`."""
