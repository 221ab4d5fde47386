"""Rendering only: rows in, markdown out."""
