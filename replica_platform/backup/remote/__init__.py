"""Pull a database from another host over SSH and prove that the copy is equal.

In the order of the story:

- `pull`: the whole pull, and its result.
- `address`: where the database is.
- `connection`: the SSH connection; requests to the agent and their answers.
- `agent`: the program that runs on the other host, in its python3.
- `openssh`: a file's bytes by OpenSSH's own program.
- `by_file`, `by_rows`: the methods `scp` and `query`.
- `schema`, `synchronise`: the tables and the rows of a copy by rows.
- `compare`: the proof that both sides are equal.
- `errors`: what can go wrong with SSH, and its translation.

Nothing is installed on the other host. What happens to a backup once it is here does not belong
here. asyncssh is imported only when a pull runs.
"""
