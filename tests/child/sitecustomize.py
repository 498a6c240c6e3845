"""Read by Python at the start of a test's child process: there PyTorch is not installed.

transformers imports it wherever it finds it, which takes two seconds of each start; people who run
m3mlx seldom have it. A test whose child needs PyTorch sets PYTHONPATH to the root alone.
"""

import sys

sys.modules["torch"] = None
