"""What every stage stands on; it knows nothing of noise, models or tuning.

errors      the one exception that reaches a user as a paragraph, not a traceback
plugin      find("noise", "symmetric"): a plug-in is a file, its name is its config value
artifacts   results that are complete or absent, fingerprints, who owns a work directory
runtime     processes, devices, seeds, versions, the compilation cache
mesh        the device mesh and how arrays lie on it
task        Task, the three functions a training loop needs, and TrainState
optim       optax transformations from a config
loop        the training loop
checkpoint  Orbax: train state and data iterator, saved together
metrics     accuracy, mean-per-class accuracy, macro F1
writer      metrics as JSON lines and TensorBoard events, the progress bar
"""
