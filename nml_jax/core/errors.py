"""The exception for what a user can mend."""


class UserError(ValueError):
    """Something given by the user is wrong.

    The message is one paragraph: what was given, what is valid, what to do. `nml_jax.main` prints it
    without a traceback and exits with status 2; a library caller catches it as a `ValueError`.
    """
