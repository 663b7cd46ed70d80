"""What tests of code that uses relmsg need."""

from relmsg.testing.eventually import eventually

__all__ = ["eventually"]
