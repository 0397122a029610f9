"""Generations in an object store, as blocks: pushing, pulling, and verifying them there.

objects       the requests to a folder or a bucket
block_store   blocks, manifests and the pointer among those objects
assemble      a candidate made of local and fetched blocks

DuckDB never opens a remote object.
"""
