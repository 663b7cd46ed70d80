"""The benchmark suite: `make bench`. What is measured stands in ``rows.py``, how in ``measure.py``.

A *contender* is a program of its own (ours, a peer's, or the loop teams write); a *comparison* runs several of them by
turns on the same services; a *row* of the table sets two of them against each other and against a goal. Start at
``model.py``.
"""
