"""Generations in an object store, as blocks: pushing, pulling, and verifying them there.

index         the manifests and the pointer
block_store   manifests, pointer and blocks together; the blocks are those of `blocks.pool`
assemble      a candidate made of local and fetched blocks
reports       what was pushed, verified and pruned

DuckDB never opens a remote object.
"""
