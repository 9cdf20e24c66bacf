"""What tests of exports need before anything imports open_clip."""

import importlib.util

if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("torchvision") is not None:
    from tests.unit.export.torchvision_operators import make_torchvision_importable

    make_torchvision_importable()
