"""Parts of a commit that are a decision of their own; `commit` puts them together.

- `written`: what a table must be once its rows are written, and how they are;
- `content`: what a sync proves of the content, and repairs;
- `deletes`: whether rows are deleted, how they are found, and how many may be.
"""
