"""The one exception type that users see."""

from __future__ import annotations

from typing import Any


class EffcError(Exception):
    """A refusal in words: what failed (op, shapes, pass), where in the user's source, and one thing to try."""

    def __init__(
        self, message: str, *, op: str | None = None, loc: Any = None, shapes: Any = None, pass_name: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.op, self.loc, self.shapes, self.pass_name, self.hint = message, op, loc, shapes, pass_name, hint
        lines = [message]
        for label, value in (("op", op), ("at", loc), ("operands", shapes), ("pass", pass_name), ("try", hint)):
            if value:
                lines.append(f"  {label}: {value}")
        super().__init__("\n".join(lines))
