"""Market data: daily bars, the tables of the master, their rules, and live quotes.

In the order of the story: `sessions` (trading days), `bars` (where bars come from), `indicators`,
`tables` (what the master holds), `checks` (rules of the tables), `reader` (what a reader of a
replica must offer) and `quotes`. How a replica is published belongs to the engine `replica`.
"""
