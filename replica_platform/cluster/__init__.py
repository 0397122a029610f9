"""Runs on the hosts that their assets live on: Dagster's queue, its Celery launcher, the workers.

- `placement`: the run coordinator, which gives each run the queue of its host.
- `launcher`: the run launcher, which sends a run to that queue and knows when its worker is dead.
- `broker`: whether the broker answers, and whether it would forget.
- `worker`: the Celery application that executes runs on a host.

`launcher` and `worker` need the extra `cluster`; `placement` is importable without it. What the
heartbeats tell is read in `app.hosts`.
"""
