"""Measure what memory costs in time: the same work with and without it, side by side in one run.

Ways of doing the same work take turns in every round, after one warm-up round; figures are medians
and quartiles. ``seconds`` are wall-clock time, ``cpu_seconds`` the CPU time of this process, which
other work on the machine changes less.
"""
