"""The public benchmarks of `likewise eval`, from features or through a server."""
