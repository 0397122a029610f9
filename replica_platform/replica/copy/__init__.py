"""Bytes of DuckDB files: their format, digests, and copies; nothing of stores or manifests.

file_format    the header, block size, log files and catalog's name, without DuckDB
checksums      DuckDB's own block checksum
free_list      which blocks a file may change by its next checkpoint
blocks         every block's digest, from one pass over a file
copy_file      one file made from another: reflink, patch or whole copy
priority       lower priority and fewer cores while readers query
"""
