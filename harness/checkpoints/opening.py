"""From what a user names to a checkpoint: a folder, a hub name, `base+adapter`, or a list of them to average."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.checkpoints.adapter import AdaptedCheckpoint
from harness.checkpoints.adapter_layout import is_adapter_folder
from harness.checkpoints.averaged import AveragedCheckpoint
from harness.checkpoints.derived import DerivedCheckpoint
from harness.checkpoints.layout import Checkpoint
from harness.checkpoints.source import is_hub_name, local_folder
from harness.errors import GraftbenchError

Model = Checkpoint | DerivedCheckpoint
"""A model that can be merged."""

Source = str | Path | Sequence[str | Path]
"""How a user names one: a folder or hub name, `base+adapter`, or a list of them to average."""


def open_checkpoint(source: Source) -> Model:
    """Open a checkpoint and check its headers.

    Args:
        source: a folder or hub name (`name[@revision]`); one with a LoRA adapter, written `base+adapter`; or several
            of these, whose mean it is. A folder that exists under the whole text wins over `base+adapter`.

    Raises:
        GraftbenchError: something is missing or corrupt, or does not fit together; it is named.
    """
    if isinstance(source, (str, Path)):
        return _open_one(source)
    if not source:
        raise GraftbenchError("an expert has an empty list of checkpoints; name at least one")
    with ExitStack() as opened:
        members: list[Checkpoint | DerivedCheckpoint] = []
        for one in source:
            member = _open_one(one)
            opened.callback(member.close)
            members.append(member)
        checkpoint = members[0] if len(members) == 1 else AveragedCheckpoint(members)
        opened.pop_all()  # from here on, closing is the caller's
        return checkpoint


def _open_one(source: str | Path) -> Checkpoint | DerivedCheckpoint:
    base, adapter = split_adapter(source)
    if adapter is None:
        folder = local_folder(base)
        if is_adapter_folder(folder):
            raise GraftbenchError(
                f"{source} is a PEFT adapter, not a model; name the model that it was trained on as well: BASE+{source}"
            )
        return Checkpoint(base)
    checkpoint = Checkpoint(base)
    try:
        return AdaptedCheckpoint(checkpoint, adapter)
    except GraftbenchError:
        checkpoint.close()
        raise


def split_adapter(source: str | Path) -> tuple[str, str | None]:
    """Base and adapter of `base+adapter`; no adapter where the whole text names a folder or has no plus sign.

    Raises:
        GraftbenchError: the parts at no plus sign, or at several, are folders or hub names.
    """
    text = str(source)
    if "+" not in text or _is_given(text):
        return text, None
    cuts = [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == "+"]
    fitting = [cut for cut in cuts if all(_is_given(part) for part in cut)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        readings = " or ".join(f"'{base}' with '{adapter}'" for base, adapter in fitting)
        raise GraftbenchError(f"'{text}' can be read as {readings}; rename a folder so that only one remains")
    missing = next(part for part in cuts[0] if not _is_given(part))
    raise GraftbenchError(
        f"'{text}' is no folder, and as base+adapter it names '{missing}', which is neither a folder nor a hub name "
        "(owner/name[@revision])"
    )


def _is_given(part: str) -> bool:
    return Path(part).expanduser().is_dir() or is_hub_name(part)
