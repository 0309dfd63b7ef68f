"""For tools that look for a setup.py; all metadata are in pyproject.toml."""

from setuptools import setup

setup()
