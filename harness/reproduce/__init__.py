"""A published table again: what its spec says, what it needs, whether the set-up is right, and what counts as
the same number."""
