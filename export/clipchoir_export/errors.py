"""What can go wrong while exporting; every message is fit to be printed as it is.

ExportError
├── SpecError          an ensemble spec or a label set is wrong: names the file and the key
├── CheckpointError    a checkpoint is missing, incomplete or of another architecture
├── VerificationError  the exported encoder disagrees with its PyTorch original
└── RepositoryError    the repository folder cannot be written
"""


class ExportError(Exception):
    """Base of every error that `clipchoir-export` reports."""


class SpecError(ExportError):
    """An ensemble spec or a label set is wrong."""


class CheckpointError(ExportError):
    """A checkpoint cannot be loaded."""


class VerificationError(ExportError):
    """An exported encoder does not compute what its checkpoint computes."""


class RepositoryError(ExportError):
    """A repository cannot be written where it was asked for."""
