"""MindSpeed-LLM's name for `tuneval preprocess`."""

import sys

from tuneval.cli import run_entry

sys.exit(run_entry(__file__))
