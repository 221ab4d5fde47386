"""The run folder: append-only journals, tables derived from them, and where they come from."""
