"""The sample platform: real input for a fresh machine, made once and only where it is absent.

Real daily bars in the source database, conversations as a worker appends them, a gym's
database to back up. A source of your own is never written to.
"""
