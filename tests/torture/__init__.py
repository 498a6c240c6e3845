"""Harnesses that try to make a store lose, lie or crash. tools/torture.py runs them for long.

apart     a task in a process of its own, which may die or hang
crashes   a writer is killed, or its disk fails, at every step; what it committed must be there
faults.c  fails the system calls of a process, also SQLite's and USearch's
damages   files are damaged at random; every answer must be right or an error
strangers  files of several stores together, crafted catalogs, special files, missing rights
denials   each call about a file fails once, whatever a user does
readers   four processes read while one writes
"""
