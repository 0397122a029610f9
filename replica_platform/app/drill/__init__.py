"""The fault drill: what is broken on purpose in a sandbox, and how soon the daemon repairs it.

- `sandbox`: a temporary project with its own Postgres, input and daemon;
- `faults`: the damages, how each is noticed, and when it is healed;
- `drill`: does the damage, waits, and reports.
"""
