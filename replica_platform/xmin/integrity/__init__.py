"""Source and target compared: to find deleted rows, to repair the target, and to prove it right.

How rows are read by xmin and how they are written is decided elsewhere. To change ...

- how deleted rows are found: `deletes`;
- how many may be deleted: `delete_limit`;
- how a doubtful target is compared before it is repaired: `row_hashes`;
- which rows `validate` calls missing, stale, extra or pending: `compare`;
- what a sync proves and repairs of the content: `parts` (which blocks), `rolling` (the comparison),
  `prover` (what is stored and reported);
- the score of `validate` and its sentence: `validate`;
- how keys are hashed by ranges, for all of these: `key_hashes`.
"""
