"""A store: documents, their references and their memories in one folder.

    STORE/
      catalog.sqlite    the truth: documents, references, text, full text, vectors, settings
      memories.kv       the memories, a fixed-size record for each slot
      memories.used     when each memory was last used; may be lost
      vectors.usearch   derived from the catalog, for large stores only
      sessions.sqlite   conversations that were kept
      lock              held by the one process that writes
      watching          state of a process that watches folders

An edition is all memories made under one fingerprint: by one model, in one way. A store has one
or more (memories-2.kv, …), which share documents, text and vectors. Methods take the id of the
edition that is meant; None means the first. A reference without a memory in an edition is cold
there until it is written.

What a commit does, in this order: the records of new memories are written and are on the disk;
then one transaction adds the rows. A crash before the end of the transaction leaves bytes that
nothing refers to; they are cut off or written over. What may wait is done by ``maintain``.
"""

from .backup import BackupReport
from .check import CheckReport, Damage
from .cipher import LockedError, Passphrase
from .copies import different_first
from .facts import FACT, StoredFact, Version
from .filter import Filter
from .lock import BusyStore, ReadOnlyStore
from .memory_store import MemoryStore
from .records import ColdReference
from .repair import RepairReport
from .rows import Edition, NewReference, StoredDocument, StoredReference
from .search import Hit
from .sessions import Sessions
from .stores import Stores
from .traces import ForgetReport, Remnant, Trace, Verification

__all__ = [
    "FACT",
    "BackupReport",
    "BusyStore",
    "CheckReport",
    "ColdReference",
    "Damage",
    "Edition",
    "Filter",
    "ForgetReport",
    "Hit",
    "LockedError",
    "MemoryStore",
    "NewReference",
    "Passphrase",
    "ReadOnlyStore",
    "Remnant",
    "RepairReport",
    "Sessions",
    "StoredDocument",
    "StoredFact",
    "StoredReference",
    "Stores",
    "Trace",
    "Verification",
    "Version",
    "different_first",
]
