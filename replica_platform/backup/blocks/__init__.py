"""Backups kept as blocks: what several copies have in common is stored once, on any host.

- `keys`: the encryption keys, from the environment.
- `store`: the manifests and blocks of backups in a folder or an object store.
- `contents`: a kept file as a plain file again, for a verification or a restore.

The blocks themselves are those of `replica_platform.blocks`. What a backup is, and when it may be
deleted, is decided above.
"""
