"""What brings the platform up as a whole, on top of the engines.

In the order of the story: `settings`, `embedded` (the Postgres that runs where no DSN is given),
`launch` (databases, sample input, Dagster's processes), `runs` (one run of all assets), `health`
(the state of each pillar) and `sample` (input for a fresh machine). How results are printed
belongs to `cli`.
"""
