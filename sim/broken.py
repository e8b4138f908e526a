"""What the simulation raises when it has found something."""


class Broken(Exception):
    """The core did what it must never do."""


def require(holds: bool, message: str) -> None:
    """Raises `Broken` unless `holds`: not an assert, since it must work under `python -O` too."""
    if not holds:
        raise Broken(message)
