"""Why a pruner ranks where it ranks."""
