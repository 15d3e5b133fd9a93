"""MindSpeed-LLM's name for `tuneval generate` and `tuneval chat`."""

import sys

from tuneval.cli import run_entry

sys.exit(run_entry(__file__))
