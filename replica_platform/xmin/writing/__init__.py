"""Parts of a commit that are a decision of their own; `commit` puts them together.

- `deletes`: whether rows are deleted, how they are found, and how many may be.
"""
