"""The architecture stage within other people's trainers, and runs told to other programs.

Each needs its library, which dnat does not.
"""
