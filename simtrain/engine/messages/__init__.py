"""Collectives as the messages of their algorithm: who sends how much to whom, and after which other messages.

A message may start when what it forwards or reduces has arrived, and when its receiver has room. Around a ring, so many messages may be under
way on one connection (:data:`simtrain.engine.messages.writer.SLOTS`), so that latencies overlap; chunks follow each other one by one, so that
the first is not slowed by the next. ``n`` members on ``N`` nodes, ``r`` on each, ``S`` bytes in the larger buffer of a member:

==============  ==================================================================  ==========================================
algorithm       messages                                                            each of
==============  ==================================================================  ==========================================
ring            ``n`` per step and ring; 2(n-1) steps of an all-reduce, else n-1    S / n / rings
ring broadcast  ``n - 1`` per chunk and ring, one behind the other                  S / chunks / rings
tree            4(n-1) per chunk and channel: up and down two complementary trees   S / 2 / chunks / r
pairwise        n(n-1), all at once                                                 S / n
hierarchical    rings inside nodes, rings or chains per rail between them           S / r / chunks, S / n / chunks
==============  ==================================================================  ==========================================

All arrays are built with numpy; a ring all-reduce over 1,024 ranks (2.1 million messages) takes about a second. Each module names its sources.
"""

from simtrain.engine.messages.algorithms import ALGORITHMS, Algorithm, algorithm_of, algorithms_of
from simtrain.engine.messages.message import Messages, join, split
from simtrain.engine.messages.placement import Placement, place

__all__ = ["ALGORITHMS", "Algorithm", "Messages", "Placement", "algorithm_of", "algorithms_of", "join", "place", "split"]
