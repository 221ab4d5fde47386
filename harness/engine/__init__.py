"""Runs a sweep: cells, claims, evaluation, reading ahead."""
