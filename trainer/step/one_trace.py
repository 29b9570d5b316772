"""A `tf.function` of one signature, without looking for its trace at every call."""

import tensorflow as tf


class OneTrace:
    """Traces `function` at the first call, and calls that trace.

    function: a `tf.function` with an `input_signature`. To find the trace anew takes longer than some steps.
    `tf.config.run_functions_eagerly` holds as for the function itself.
    """

    def __init__(self, function):
        self.function = function
        self._trace = None

    def __call__(self, *args):
        if tf.config.functions_run_eagerly():
            return self.function(*args)
        if self._trace is None:
            self._trace = self.function.get_concrete_function()
        return self._trace(*args)
