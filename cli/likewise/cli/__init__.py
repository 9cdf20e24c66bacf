"""Commands that put the parts together: serve, demo, eval, bench, doctor."""
