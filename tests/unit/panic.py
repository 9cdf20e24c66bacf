"""What a library in Rust raises when it meets something that it takes for impossible."""


class Panic(BaseException):
    """No `Exception`, as pyo3's own is none."""
