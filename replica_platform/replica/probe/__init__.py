"""Opening a candidate's file before it becomes one, in a process that a corrupt file may end.

program        the program: each table's rows and first values, and the views that do not open
process        the process that runs it
verify_copy    comparing a copy with its source, and opening it
"""
