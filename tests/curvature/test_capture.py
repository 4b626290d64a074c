"""Second moments written while a model trains: by Trainer, by SFTTrainer, and in a plain loop."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from harness.curvature import SecondMoments, SecondMomentsCallback, save_second_moments, second_moments_of
from harness.curvature.second_moments import FILE_NAME
from harness.errors import GraftbenchError
from methods.ota import Ota
from tests.checkpoints.llama import TOKENS
from tests.curvature.export.live import adamw, plant, read_constants, saved, tied_model, train
from tests.merging.models import merged, same_bytes


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    common = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "learning_rate": 1e-3}
    return {"output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 2, **common, **options}


def trained(folder: Path, model: nn.Module, callback: SecondMomentsCallback, steps: int = 3, **options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, TOKENS, (5,), generator=generator) for _ in range(6)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    options = arguments(folder, steps, adam_beta2=0.95, **options)
    trainer = Trainer(model, TrainingArguments(**options), train_dataset=data, callbacks=[callback])
    trainer.train()
    return trainer


def assert_is_live(path: Path, optimizer: Any, model: nn.Module) -> None:
    """The file is the optimizer's own state, parameter by parameter."""
    states = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() if p.requires_grad}
    with SecondMoments(path) as moments:
        assert moments.shapes == {name: tuple(state.shape) for name, state in states.items()}
        for name, state in states.items():
            assert torch.equal(moments.read(name), state.float()), name


def test_trainer_leaves_the_file_with_its_metadata(tmp_path: Path) -> None:
    model = tied_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    trainer = trained(tmp_path, model, SecondMomentsCallback(base_digest="abc"), gradient_accumulation_steps=2)
    assert isinstance(trainer.optimizer, AcceleratedOptimizer)
    assert_is_live(tmp_path / FILE_NAME, trainer.optimizer, model)
    with SecondMoments(tmp_path / FILE_NAME) as moments:
        metadata = moments.metadata
    assert (metadata.optimizer, metadata.step, metadata.beta2) == ("AdamW", 3, 0.95)
    assert (metadata.base_digest, metadata.bias_corrected) == ("abc", False)
    assert metadata.learning_rate == pytest.approx(1e-3), "the schedule's, not the 0 that it ends with"
    assert metadata.correction == pytest.approx(1 / (1 - 0.95**3))


def test_the_file_is_written_every_few_steps(tmp_path: Path) -> None:
    written = []

    class Watching(SecondMomentsCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_step_end(args, state, control, **given)
            if (tmp_path / "moments" / FILE_NAME).exists():
                with SecondMoments(tmp_path / "moments") as moments:
                    written.append((state.global_step, moments.metadata.step))

    trained(tmp_path / "run", tied_model(), Watching(tmp_path / "moments", every=2), steps=5)
    assert written == [(2, 2), (3, 2), (4, 4), (5, 4)]
    with SecondMoments(tmp_path / "moments") as moments:
        assert moments.metadata.step == 5


def test_sft_trainer_leaves_the_file(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "one", "two", "three"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    model = tied_model()
    trainer = SFTTrainer(
        model,
        SFTConfig(**arguments(tmp_path, 3), bf16=False, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"text": "one two three"}, {"text": "three two one"}]),
        processing_class=fast,
        callbacks=[SecondMomentsCallback()],
    )
    trainer.train()
    assert_is_live(tmp_path / FILE_NAME, trainer.optimizer, model)
    with SecondMoments(tmp_path) as moments:
        assert moments.metadata.step == 3


def test_experts_of_unequal_length_are_weighed_otherwise_without_the_correction(tmp_path: Path) -> None:
    models, files = {"base": saved(tmp_path / "base", tied_model(seed=7))}, {}
    for seed, steps in ((8, 2), (9, 6)):
        name, model = f"of{steps}", tied_model(seed=seed)
        trained(tmp_path / name, model, SecondMomentsCallback(), steps)
        models[name], files[name] = saved(tmp_path / f"{name}.model", model), tmp_path / name / FILE_NAME
    factors = {}
    for name, file in files.items():
        with SecondMoments(file) as moments:
            factors[name] = moments.metadata.correction
    assert factors == {"of2": pytest.approx(1 / (1 - 0.95**2)), "of6": pytest.approx(1 / (1 - 0.95**6))}
    corrected, raw = merged(Ota(), models, files), merged(Ota(curvature="raw"), models, files)
    assert not same_bytes(corrected, raw)


def test_a_plain_loop_needs_one_call(tmp_path: Path) -> None:
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    steps = int(next(iter(optimizer.state.values()))["step"])
    assert save_second_moments(optimizer, model, tmp_path / "expert", step=steps) == tmp_path / "expert" / FILE_NAME
    assert_is_live(tmp_path / "expert" / FILE_NAME, optimizer, model)
    wrapped = second_moments_of(AcceleratedOptimizer(optimizer), nn.DataParallel(model))
    assert wrapped.keys() == second_moments_of(optimizer, model).keys()
    with pytest.raises(GraftbenchError, match=rf"step={8 * steps}, but AdamW made {steps} steps"):
        save_second_moments(optimizer, model, tmp_path / "expert", step=8 * steps)


def test_moments_of_equal_shapes_keep_their_names(tmp_path: Path) -> None:
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    planted = plant(model, optimizer)
    assert read_constants(save_second_moments(optimizer, model, tmp_path)) == planted


def test_sharded_state_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    next(model.parameters()).ds_id = 0  # what ZeRO 3 marks its parameters with
    with pytest.raises(GraftbenchError, match=r"sharded by DeepSpeed.*graftbench moments export"):
        save_second_moments(optimizer, model, tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


def test_an_optimizer_without_second_moments_stops_trainer_after_one_step(tmp_path: Path) -> None:
    steps = []

    class Counting(SecondMomentsCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.append(state.global_step)

    with pytest.raises(GraftbenchError, match=r"SGD.*no exp_avg_sq.*graftbench moments export"):
        trained(tmp_path, tied_model(), Counting(), optim="sgd")
    assert steps == [0]


def test_steps_between_files_must_be_positive() -> None:
    with pytest.raises(GraftbenchError, match="every=0"):
        SecondMomentsCallback(every=0)


def test_importing_curvature_imports_no_transformers() -> None:
    program = "import sys, harness.curvature; sys.exit('transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
