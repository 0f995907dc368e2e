"""The exceptions that reach a user as a sentence."""


class UserError(ValueError):
    """Something given by the user is wrong.

    The message is one paragraph: what was given, what is valid, what to do. `nml_jax.main` prints it
    without a traceback and exits with status 2; a library caller catches it as a `ValueError`.
    """


class Preempted(Exception):
    """A SIGTERM came: the run was asked to stop. All it did is saved; the same command goes on from there.

    `nml_jax.main` prints it and exits with status 0.
    """
