"""Alerts: what is wrong in Dagster's eyes, told once to each receiver, and once more when it ended.

- `trouble`: one trouble, and its sentences;
- `look`: finds the troubles that there are now in Dagster's database;
- `ledger`: remembers what was told, and what waits for a receiver;
- `receivers`: the log, a webhook, and mail;
- `deliver`: sends what waits.
"""
