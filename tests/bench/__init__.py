"""Benchmarks: run by hand, `python -m tests.bench.<name>`; every one prints ratios of what it measured in one
run."""
