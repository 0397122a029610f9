"""The assets, checks, schedules and sensors of the platform, a folder for each pillar.

A folder with a `defs.yaml` is one of the `components`; `market` and `replica` are Python.
"""
