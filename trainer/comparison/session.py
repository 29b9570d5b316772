"""Forgets what Keras keeps for a process: it would go from one run to the next."""

import gc

import keras


def clear_session() -> None:
    """Names and generators of random numbers start again, and what is no longer referenced is freed.

    The dtype policy stays as it is: a module that the config imports sets it once for all runs.
    """
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    gc.collect()
