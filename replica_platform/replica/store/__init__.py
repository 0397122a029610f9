"""The store on disk: generations, candidates and the pointer, and what may change them.

manifest        what a generation is: its digests, lineage and tables
layout          names of the files, and reading them
integrity       whether a generation's file is what its manifest says
ownership       one purpose, or the whole master, for each store
pointer         the store's lock, and moving the pointer
folders         making the folders, and clearing what a killed publisher left
retention       which generations stay, and the spare that the next one is patched from
disk_space      free space for a candidate
probe           a program that reads a database file in its own process
probe_process   the process of that program
verify_copy     comparing a copy with its source before it becomes a candidate
candidate       a verified generation that no reader sees yet; released, it is current

How a candidate's file is copied is not here: see `publish`, and `remote` for blocks from elsewhere.
"""
