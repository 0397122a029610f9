"""Changed blocks: a sync reads the heap blocks that the source's WAL summaries name.

Why no row is missed and why deletes are exact is said in `docs/blocks.md`. In the order of the
story:

- `history`: the start points of each source, kept in the target.
- `summaries`: which blocks of which leaves changed between two WAL positions.
- `waiting`: have the source summarize its WAL up to a position, within a limit.
- `choice`: which tables can be read by blocks, whether it pays, and what would cure an obstacle.
- `read`: count the live rows of changed blocks, and select the changed ones.
- `deletes`: delete the rows that changed blocks of the source no longer hold.
"""
