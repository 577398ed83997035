"""A process beside the server that takes more memory than it has."""

from adcore.sources.child import Asker, within_its_memory

if __name__ == "__main__":
    with within_its_memory():
        server = Asker("hungry")
        server.next()
        server.answer(b"x" * (1 << 30))
