"""The decision and what it reads. Pure: time, randomness, counts and the facts of a request come in as arguments."""
