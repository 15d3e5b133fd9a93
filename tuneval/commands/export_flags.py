"""Flags of export, a part of convert's."""

from __future__ import annotations

from tuneval.commands import convert_flags
from tuneval.config.schema import ConvertConfig, ExportConfig


def check(config: ExportConfig) -> None:
    convert_flags.check(as_conversion(config))


def as_conversion(config: ExportConfig) -> ConvertConfig:
    """What export was asked for in the words of convert, whose further flags stay as they are by default."""
    return ConvertConfig(**vars(config))
