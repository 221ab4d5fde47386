"""Training of videoglamm-mini; a tool of this repository, not part of the wheel."""
