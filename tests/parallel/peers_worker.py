"""One process of a job that goes wrong on purpose: `torchrun ... peers_worker.py WHAT`."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from tuneval import runtime
from tuneval.errors import UserError
from tuneval.parallel.peers import joined

what = sys.argv[1]
with joined(0.5):
    dist.all_reduce(torch.ones(1))
    if runtime.rank() == 1:
        if what == "raise":
            raise ArithmeticError("weights are odd")
        if what in ("kill", "stage"):
            os.kill(os.getpid(), signal.SIGKILL)
    if what == "all":
        raise UserError("--lr x: give a number")
    if what == "kill":
        signal.signal(signal.SIGTERM, lambda *_: None)  # as training does: a signal is only remembered
        if runtime.rank() == 0:
            print(time.time(), flush=True)
        time.sleep(60)  # in no collective: only the others' watch can notice
    if what == "stage":
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:  # as torch's pipeline does
            raise RuntimeError("\n    [Stage 1] failed to run forward") from error
    if what != "well":
        dist.all_reduce(torch.ones(1))
