"""The published replica, its checks, and what is derived from it."""
