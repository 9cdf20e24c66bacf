"""Public benchmarks of conditional retrieval, from their official annotations; numpy and pyarrow, no torch."""
