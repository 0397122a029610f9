"""Serving one generation to the queries of a process, and swapping it; nothing of publication.

lease     the lock by which a reader keeps its generation
swap      which generation is attached, and how another one replaces it
connect   a connection for pools, which stays on one generation
forms     rows, Arrow tables and data frames
reader_status  where a reader's answers come from
answers   the last good answers, for when no generation can be read
"""
