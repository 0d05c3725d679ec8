"""Durable work: the queue, the loops that work it off, the outbox of events."""
