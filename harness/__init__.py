"""The engine: data sets, metrics, the sweep, the record store, the gate and the command line."""
