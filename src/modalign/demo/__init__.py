"""The demo: a drawn world joined, extended, searched and proved; and a store searched as it is."""

from modalign.demo.story import Demo, DemoResult, commands, run_demo

__all__ = ["Demo", "DemoResult", "commands", "run_demo"]
