"""The delivery log: what a record is, the queue it waits in, the coroutine that writes it, and how it is read again."""
