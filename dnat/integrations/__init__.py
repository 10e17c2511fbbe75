"""The architecture stage within other people's trainers; each needs its library, which dnat does not."""
