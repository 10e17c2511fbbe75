"""Runs on Weights & Biases.

mirror    `WandbTracker`: a run directory, mirrored while the run goes on
values    rows, choices and results as W&B takes them
report    what is still to be uploaded, and a report of the runs that are there
"""
