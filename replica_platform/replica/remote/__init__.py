"""Generations in an object store, as blocks: pushing, pulling, and verifying them there.

block_store   manifests and the pointer in an object store; its blocks are those of `blocks.pool`
assemble      a candidate made of local and fetched blocks

DuckDB never opens a remote object.
"""
