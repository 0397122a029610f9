"""The store on disk: generations, candidates and the pointer, and what may change them.

manifest        what a generation is: its digests, lineage and tables
layout          names of the files, and reading them
integrity       whether a generation's file is what its manifest says
ownership       one purpose, or the whole master, for each store
pointer         the store's lock, and moving the pointer
folders         making the folders, and clearing what a killed publisher left
retention       which generations stay
spare           a retired generation that the next one is patched from
scrub_state     when the bytes of each file were last read
disk_space      free space for a candidate
candidate       a verified generation that no reader sees yet; released, it is current

How a candidate's file is copied is not here: see `publish`, and `remote` for blocks from elsewhere.
"""
