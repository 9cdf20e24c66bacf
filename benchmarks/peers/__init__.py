"""Likewise beside what a user would pick instead: the parts of `benchmarks/peers.py`."""
