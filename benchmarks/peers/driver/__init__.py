"""The half that runs in a peer's own environment; it needs the standard library and numpy, nothing else."""
