"""The policies import with nothing but the standard library at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lipadvisor.policies

PROGRAM = """
import importlib.abc, importlib.util, sys, types

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "lipadvisor":
            raise ImportError(f"{name} is not in the standard library")

sys.meta_path.insert(0, Block())
package = types.ModuleType("lipadvisor")
package.__path__ = []
sys.modules["lipadvisor"] = package
folder, name = sys.argv[1], "lipadvisor.policies"
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
from pathlib import Path
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    if file.stem != "__init__":
        importlib.import_module("lipadvisor.policies." + file.stem)
policy = sys.modules["lipadvisor.policies"].named_policy("lipschitz")
sys.modules["lipadvisor.policies"].laws.check(policy, seeds=[0], steps=10)
print(sorted({n.partition(".")[0] for n in sys.modules} - set(sys.stdlib_module_names) - {"__main__"}))
"""


def test_policies_need_the_standard_library_alone():
    folder = str(Path(lipadvisor.policies.__file__).parent)
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, folder], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "['lipadvisor']"
