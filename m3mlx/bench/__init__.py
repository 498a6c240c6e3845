"""How fast memory is: the same work with and without it, in one run, side by side.

Ways of doing the same work take turns in every round, after one round that does not count;
figures are medians and quartiles. ``seconds`` are what a clock on the wall says and
``cpu_seconds`` are this process's own, which other work on the machine stretches less.
"""
