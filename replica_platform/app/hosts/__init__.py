"""The hosts of a platform: which workers live, what they run, and which runs wait for them.

Workers write heartbeats into Dagster's database, where the runs are recorded too, so that a broker
that is away or has forgotten says nothing about a run. Celery and Dagster are not needed here.

- `heartbeats`: the table of workers.
- `waiting`: the runs that Dagster has not ended, by queue.
- `status`: both together, in words.
"""

from replica_platform.app.entries.base import CENTRAL
from replica_platform.app.hosts.heartbeats import Heartbeats, Worker
from replica_platform.app.hosts.status import HostsStatus, HostStatus, hosts_status

__all__ = ["CENTRAL", "Heartbeats", "HostStatus", "HostsStatus", "Worker", "hosts_status"]
