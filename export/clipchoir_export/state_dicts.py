"""Loading tensors into a module so that every key and every shape has to match."""

from collections.abc import Collection

from torch import Tensor, nn

from clipchoir_export.errors import CheckpointError

StateDict = dict[str, Tensor]
_LISTED = 8


def check_keys(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise a `CheckpointError` that names the keys, unless both collections are empty."""
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            listed = ", ".join(sorted(names)[:_LISTED])
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            problems.append(f"{len(names)} {kind} keys: {listed}{more}")
    if problems:
        raise CheckpointError("; ".join(problems))


def load_strictly(module: nn.Module, state: StateDict) -> None:
    """Load `state` into `module` and put the module into eval mode.

    Raises:
        CheckpointError: a key is missing or unexpected, or a shape differs; the message names them.
    """
    expected = module.state_dict()
    check_keys(missing=expected.keys() - state.keys(), unexpected=state.keys() - expected.keys())
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)}, the architecture has {tuple(tensor.shape)}"
            )
    module.load_state_dict(state)
    module.eval()
