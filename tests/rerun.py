"""A stand-in for CUDA graphs on a CPU: a call is made again, and writes over what it returned first."""

from imagewam.inference.static_calls import _tensors


def rerun(run):
    """A `Capture` of `inference/static_calls.py`."""
    outputs = run()

    def replay():
        for static, new in zip(_tensors(outputs), _tensors(run()), strict=True):
            static.copy_(new)

    return replay, outputs
