"""The child process of a backup: whatever opens, copies or hashes a SQLite file runs in it.

A process that opens and closes a live SQLite file, or its `-shm`, drops every lock that the same
process holds on it; commits can then vanish while `integrity_check` says ok. Hence a child for
each task. In the order of the story:

- `process`: the caller's side; starts the child and returns its answer.
- `messages`: the answers that both sides share, and their form on the pipe.
- `__main__`: the child's side; runs one task.
- `snapshot`: copies a live file in one step and checks the copy.
- `file_copy`: copies the bytes of a live file where its locks allow it.
- `check`: hashes a quiet file, checks its integrity, counts its tables.
- `integrity`: SQLite's integrity check, also where collations or functions are missing.
- `outbox`: what a backup knows of an outbox: identity, undelivered rows.
- `restored_copy`: copies a backup, gives a restored outbox a new identity.
- `clone`: copies the file that a pull replaces, and digests its blocks.
- `queries`: asks a restored copy the queries of a drill.
- `contents`: what is in a database; a pull sends this file to the other host too.

Names, manifests and folders of backups do not belong here. Each child pays for its imports, so
nothing here imports asyncio or asyncssh.
"""
