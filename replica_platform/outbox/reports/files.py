"""A number of files in words, for the sentences of reports."""


def files(count: int) -> str:
    """Return `1 file` or `3 files`."""
    return "1 file" if count == 1 else f"{count} files"
