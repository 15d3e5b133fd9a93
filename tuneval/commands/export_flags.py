"""Flags of export, a part of convert's."""

from __future__ import annotations

from tuneval.commands.convert_flags import check as check
