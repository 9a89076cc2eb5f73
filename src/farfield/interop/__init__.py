"""Models from elsewhere: bundled ones, folders of training runs, and files."""

from farfield.interop.load import bundled_models, load

__all__ = ["bundled_models", "load"]
