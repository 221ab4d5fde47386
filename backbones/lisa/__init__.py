"""LISA, GLaMM's ancestor: what it has of its own."""
