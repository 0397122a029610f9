"""How an asset's value is kept: a published generation, or rows merged into the target."""
