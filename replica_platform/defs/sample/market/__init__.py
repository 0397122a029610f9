"""The master's tables and their checks."""
