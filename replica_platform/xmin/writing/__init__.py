"""Parts of a commit that are a decision of their own; `commit` puts them together.

- `written`: what a table must be once its rows are written, and how they are;
- `next_watermark`: what the next sync continues from;
- `reporting`: what is reported of the tables of a group;
- `content`: what a sync proves of the content, and repairs;
- `deletes`: whether rows are deleted, how they are found, and how many may be.
"""
