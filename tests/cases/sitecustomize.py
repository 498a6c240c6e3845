"""Names of version 0.1 that scripts from outside call, found where they are now.

Python imports this file at its start where the folder is on PYTHONPATH. Nothing of m3mlx is
imported until a script asks for one of the names.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import SimpleNamespace

MODULES = {  # name of version 0.1 -> module now
    "m3mlx.store.portable": "m3mlx.export.portable",
    "m3mlx.store.transfer": "m3mlx.export.transfer",
    "m3mlx.store.container": "m3mlx.export.container",
    "m3mlx.store.signature": "m3mlx.export.signature",
    "m3mlx.store.files": "m3mlx.files",
    "m3mlx.generate": "m3mlx.chat.conversation",
    "m3mlx.template": "m3mlx.models.template",
    "m3mlx.embed": "m3mlx.models.encoder",
    "m3mlx.packages": "m3mlx.models.builtin",
    "m3mlx.cached": "m3mlx.models.inventory",
    "m3mlx.memory.calibrate": "m3mlx.calibrate",
    "m3mlx.history": "m3mlx.sessions",
    "m3mlx.transfer": "m3mlx.export.transfer",
}


def memorizing() -> type:
    """``m3mlx.memorize.Memorizing`` with the arguments that it had."""
    from m3mlx.memorize.run import MemorizeRun

    class Memorizing(MemorizeRun):
        def __init__(self, *, encode, tokenize, write, record_bytes, progress):
            decoder = SimpleNamespace(tokenize=tokenize, tokenizer_hash=None, name="")
            written = write and SimpleNamespace(write=write, record_bytes=record_bytes)
            super().__init__(encode=encode, decoder=decoder, format=written, progress=progress)

        look, add = MemorizeRun.find_files, MemorizeRun.write

        @property
        def done(self):
            return self.report

    return Memorizing


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules above, and the class as if it were a module of its package."""

    def find_spec(self, name, path=None, target=None):
        if name in MODULES or name == "m3mlx.memorize.Memorizing":
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__spec__.name
        found = importlib.import_module(MODULES[name]) if name in MODULES else memorizing()
        if name == "m3mlx.store.transfer":
            found.send, found.receive = found.write_export, found.read_export
        sys.modules[name] = found


def residue(module) -> None:
    """``ForgetReport.residue``, which is called ``remnants`` now."""
    module.ForgetReport.residue = property(lambda report: report.remnants)


def groups(module) -> None:
    """``Codec._groups``, which each of its two arrays has now."""
    module.Codec._groups = lambda codec: codec.keys.groups


ATTRIBUTES = {"m3mlx.store.traces": residue, "m3mlx.memory.codec": groups}


class AttributeFinder(importlib.abc.MetaPathFinder):
    """Gives classes the attributes that they had."""

    def find_spec(self, name, path=None, target=None):
        if name not in ATTRIBUTES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            ATTRIBUTES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.append(Finder())
sys.meta_path.insert(0, AttributeFinder())
