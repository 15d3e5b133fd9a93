"""MindSpeed-LLM's name for `tuneval preprocess`."""

import sys

from tuneval.cli import run

sys.exit(run("preprocess", sys.argv[1:]))
