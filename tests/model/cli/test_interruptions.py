"""Ctrl-C while a command imports: one line and exit code 130."""

import subprocess
import sys

import pytest

#: Presses Ctrl-C when a module is about to be imported.
CODE = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where Ctrl-C is ignored
module = sys.argv.pop(1)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
runpy.run_module("msa_model", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "who"),
    [("msa_model.cli", "msa"), ("msa_model.cli.evaluate", "msa"), ("torch", "msa info"), ("torch.nn", "msa info")],
)
def test_one_line_whatever_is_being_imported(module, who):
    done = subprocess.run([sys.executable, "-c", CODE, module, "info"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{who}: interrupted\n")
