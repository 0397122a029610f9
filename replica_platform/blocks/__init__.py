"""Blocks of files in a folder or an object store, each once, compressed, under its digest.

- `objects`: the requests to a folder or a bucket.
- `cipher`: their encryption, where it is asked for.
- `pool`: the blocks among those objects: send, read, verify, mark and sweep.
- `errors`: what can go wrong.

The replica keeps generations so, and the backups copies of SQLite files. Their manifests, and how
a file is cut into blocks, belong to them.
"""
