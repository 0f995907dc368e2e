"""A study -> independent jobs with named inputs and outputs -> a report.

plan    the jobs of a study config, each with a directory named by what it produces
run     the stage: runs the jobs here, in order, resumable, and renders the report
"""
