"""MindSpeed-LLM's name for `tuneval evaluate`."""

import sys

from tuneval.cli import run_entry

sys.exit(run_entry(__file__))
