"""Data frames written into the target and read from it: `upsert`."""
