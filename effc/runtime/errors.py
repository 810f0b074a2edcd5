"""The one exception type that effc raises for anything a user can meet."""

from __future__ import annotations

from typing import Any


class EffcError(Exception):
    """A refusal in words: what failed, where in the user's source, and one thing to try.

    ``op`` is the op concerned, ``loc`` the user's source line, ``shapes`` the operands' types, ``pass_name`` the
    compiler's pass, ``hint`` one thing to try. All are optional and rendered below the message, one a line.
    """

    def __init__(
        self,
        message: str,
        *,
        op: str | None = None,
        loc: Any = None,
        shapes: Any = None,
        pass_name: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.op, self.loc, self.shapes, self.pass_name, self.hint = (
            message,
            op,
            loc,
            shapes,
            pass_name,
            hint,
        )
        lines = [message]
        for label, value in (("op", op), ("at", loc), ("operands", shapes), ("pass", pass_name), ("try", hint)):
            if value is not None and value != "" and value != ():
                if label == "operands" and isinstance(value, (tuple, list)):
                    value = ", ".join(map(str, value))
                lines.append(f"  {label}: {value}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies with its keywords (multiprocessing sends exceptions between processes)."""
        return (_rebuild, (self.message, self.op, self.loc, self.shapes, self.pass_name, self.hint))


def _rebuild(message: str, op: str | None, loc: Any, shapes: Any, pass_name: str | None, hint: str | None) -> EffcError:
    return EffcError(message, op=op, loc=loc, shapes=shapes, pass_name=pass_name, hint=hint)
