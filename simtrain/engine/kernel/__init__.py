"""The compiled executor's event loop (numba). :mod:`simtrain.engine.replay` is its specification.

Everything is allocated beforehand. Rows of a stream run one after another, so at any time at most one row of a stream is ready and
not yet ended: the number of streams bounds all that is in flight (heap, queues of lanes, transfers), and places are reused.

A *unit* is a row on its own, or all rows of a rendezvous, named by its first row; a *place* is where it is kept while in flight.

At ten million rows half of the time goes into waiting for memory. What one event touches of a row, group, link or transfer therefore
lies side by side: arrays of two dimensions have a line for each of these, and names for their columns; those of rows and groups are
lines of the processor's cache (docs/decisions/0017).
"""
