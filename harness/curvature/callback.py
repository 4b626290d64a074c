"""Second moments out of transformers' Trainer while it trains; works in TRL's SFTTrainer, too."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.curvature.capture import check_whole, save_second_moments, second_moments_of
from harness.errors import GraftbenchError

log = logging.getLogger(__name__)


class SecondMomentsCallback(TrainerCallback):
    """Writes `exp_avg_sq.safetensors` when training ends, and every so many steps if asked.

    An optimizer without second moments is refused before the first step or right after it, not when training ends.
    """

    def __init__(
        self, folder: Path | str | None = None, every: int | None = None, base_digest: str | None = None
    ) -> None:
        """
        Args:
            folder: where the file goes; the Trainer's `output_dir` by default.
            every: also write it after every so many optimizer steps, each time over the last.
            base_digest: digest of the weights that training begins with, `Checkpoint(base).weights_digest`.

        Raises:
            GraftbenchError: `every` is not positive.
        """
        if every is not None and every < 1:
            raise GraftbenchError(f"every={every} must be at least 1; leave it out to write at the end only")
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self.base_digest = base_digest
        self._seen_step = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Refuse sharded training before it begins."""
        self._seen_step = False
        check_whole(given["optimizer"], given["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Check once that the optimizer has second moments; write them when it is time."""
        if not state.is_world_process_zero:
            return
        if self.every is not None and state.global_step % self.every == 0:
            self._write(args, given)
        elif not self._seen_step:
            second_moments_of(given["optimizer"], given["model"])
        self._seen_step = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the file that stays."""
        if not state.is_world_process_zero:
            return
        if not self._seen_step:
            log.warning("training made no step, so there are no new second moments and no file is written")
            return
        self._write(args, given)

    def _write(self, args: TrainingArguments, given: dict[str, Any]) -> None:
        folder = self.folder if self.folder is not None else Path(str(args.output_dir))
        path = save_second_moments(given["optimizer"], given["model"], folder, base_digest=self.base_digest)
        log.info("wrote %s", path)
