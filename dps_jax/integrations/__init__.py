"""Prompt selection inside other trainers: TRL, verl, tunix, slime, SkyRL, and PyTorch loops of your own.

Each module imports its framework only when it is used.
"""
