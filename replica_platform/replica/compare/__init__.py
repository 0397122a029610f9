"""What differs between two generations of a store.

diff          two generations, leased and attached side by side
tables        their tables, columns and keys
row_groups    which parts of a table are the same bytes in both, so that nobody reads them
rows          the rows that only one of them has, found by DuckDB
reports       what was found
"""
