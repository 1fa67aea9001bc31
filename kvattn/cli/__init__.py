"""The command line."""

MOST = 1_000_000  # questions that a command may ask for
MOST_SEED = 2**32 - 1
