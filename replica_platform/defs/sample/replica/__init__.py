"""The published replica of the market's master."""
