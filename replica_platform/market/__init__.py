"""Market data: where symbols and daily bars come from, and what is computed from them."""
