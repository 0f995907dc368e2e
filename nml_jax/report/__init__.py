"""Result files -> tables, figures, findings and one HTML page; never a model, never JAX.

tables    records -> groups, means over tasks and seeds, CSV
figures   one function a figure
findings  the papers' claims, tested on the numbers at hand and said in words
papers    what the papers report, as data
page      the HTML page
run       the stage: `results.jsonl` -> a directory with all of these
"""
