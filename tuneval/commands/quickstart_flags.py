"""What the flags of `quickstart` show by themselves."""

from __future__ import annotations

from tuneval.commands.quickstart_inputs import check as check
