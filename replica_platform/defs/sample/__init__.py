"""The sample: a market in a master of its own, some tables to sync, a database to back up.

`REPLICA_SAMPLE=off` leaves this folder out, and it can be deleted: nothing outside of it names
what is in it.
"""
