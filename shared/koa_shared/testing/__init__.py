"""Fakes that behave, and small servers for tests; never part of the product."""
