"""What every engine may import beside itself; it imports nothing of the project.

- `errors`: the base classes of the errors that people read.
- `reports`: what results and progress look like in every engine; sizes and ages in words.
- `files`, `locks`, `disk_space`: atomic replacement, advisory locks, free space.
- `postgres`, `sqlite`: connections, and the one SQLite library in use.

What only one engine needs does not belong here.
"""
