"""`likewise ingest --ray`: many rows written side by side, and committed once."""
