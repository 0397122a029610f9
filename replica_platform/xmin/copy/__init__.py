"""Copying rows of the source's snapshot into a staging table of the target.

Which table is copied, and what becomes of the staged rows, is decided elsewhere. In the order of
the story:

- `tune`: how many workers copy, and how large a range is.
- `measure`: how fast rows move between the two servers.
- `ranges`: a table cut into block ranges, and the SELECT of one of them.
- `changes`: which rows changed since the watermark, and where they lie.
- `workers`: connections and threads that work on ranges side by side.
- `stream`: one COPY streamed into another.
"""
