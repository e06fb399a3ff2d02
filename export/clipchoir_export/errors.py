"""What can go wrong while exporting; every message is fit to be printed as it is.

ExportError
├── SpecError          an ensemble spec or a label set is wrong: names the file and the key
├── CheckpointError    a checkpoint is missing, incomplete or of another architecture
└── VerificationError  the exported encoder disagrees with its PyTorch original
RepositoryError        a repository is damaged or cannot be written; `clipchoir_steps.layout` has it for all
"""

from clipchoir_steps.layout import RepositoryError

__all__ = ["REPORTED", "CheckpointError", "ExportError", "RepositoryError", "SpecError", "VerificationError"]


class ExportError(Exception):
    """Base of the errors of exporting itself."""


class SpecError(ExportError):
    """An ensemble spec or a label set is wrong."""


class CheckpointError(ExportError):
    """A checkpoint cannot be loaded."""


class VerificationError(ExportError):
    """An exported encoder does not compute what its checkpoint computes."""


REPORTED = (ExportError, RepositoryError)
"""Errors whose message is all that a user needs."""
