"""Errors that a person can act on."""


class RplaError(Exception):
    """Something the user can mend: what is wrong, and what to do about it.

    Front ends print both lines without a traceback; a program catches this one type.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class MissingExtra(RplaError):
    """A feature needs packages that the base install leaves out."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs packages that are not installed.", f"Run: pip install 'rpla[{extra}]'")
