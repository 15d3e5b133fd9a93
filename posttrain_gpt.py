"""MindSpeed-LLM's name for `tuneval tune`, with its defaults."""

import sys

from tuneval.cli import run_entry

sys.exit(run_entry(__file__))
