"""Purpose replicas: part of the master for one use, with some columns masked.

rules           what a definition may say
definition      a purpose and its tables, from Python or YAML
columns         the master's columns, and those that a purpose does not list
build           the SELECT of each table, and the process that builds the file
build_program   the program of that process

Publishing the file is not here: a purpose replica is published like any other, by `publish`.
"""
