"""Generations in an object store, as blocks: pushing, pulling, and verifying them there.

objects        the requests to a folder or a bucket
stored_blocks  the blocks among those objects
index          the manifests and the pointer
prune          removing generations, and blocks that no manifest names
assemble       a candidate made of local and fetched blocks
block_store    all of them together
reports        what was pushed, verified and pruned

DuckDB never opens a remote object.
"""
