"""The benchmark harness: what `likewise bench` and `benchmarks/*.py` run."""
