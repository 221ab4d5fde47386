"""Training of glamm-mini; a tool of this repository, not part of the wheel."""
