"""What Windows lacks is imported nowhere without another way, and asked for by name nowhere."""

import subprocess
import sys

IMPORT_ALL = """
import builtins, importlib, os, pkgutil, signal
import dreamfusion_jax

LACKING, real = ("fcntl", "resource", "pwd", "grp"), builtins.__import__

def guarded(name, globals=None, *rest, **more):
    if name in LACKING and str((globals or {}).get("__name__")).startswith("dreamfusion_jax"):
        raise ModuleNotFoundError(name=name)
    return real(name, globals, *rest, **more)

names = [m.name for m in pkgutil.walk_packages(dreamfusion_jax.__path__, "dreamfusion_jax.")]
import jax  # whose own imports are theirs
builtins.__import__ = guarded
del signal.SIGHUP, os.fork
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in ("viser", "gradio", "xatlas"), (name, error)  # which need not be there
print(len(names))
"""


def test_every_module_is_imported_without_what_windows_lacks():
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 150
