"""What holds for every test."""

from hypothesis import settings

# A busy machine is not a failing test: no property may depend on how long an example takes.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
