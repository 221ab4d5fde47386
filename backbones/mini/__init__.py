"""glamm-mini: shipped weights, and the training that made them."""
