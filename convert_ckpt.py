"""MindSpeed-LLM's name for `tuneval convert`, with version 1's flags."""

import sys

from tuneval.cli import run_entry

sys.exit(run_entry(__file__))
