"""The face: a model, a readout, and what it decides under any method."""

from kvattn.judge.judge import Judge, calibrate, load

__all__ = ["Judge", "calibrate", "load"]
