"""A small stand-in for what dps_jax uses of slime, which cannot be installed from a package registry.

It was written for these tests after slime 0.3.1's documented interface, and generates in order, one group at a time,
with functions for --custom-generate-function-path and --custom-rm-path. test_slime.py takes the real slime where that
can be imported, such as from a clone on PYTHONPATH.
"""
