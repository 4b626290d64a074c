"""Trainer, whose expert keeps its second moments: `python with_trainer.py MODEL chats.jsonl EXPERT`."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from harness.curvature import SecondMomentsCallback
from harness.curvature.examples import read_examples

model_name, data, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
examples = [
    {"input_ids": example.input_ids, "labels": example.labels}
    for example in read_examples(Path(data), tokenizer, max_length=1024)
]
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32),
    args=TrainingArguments(output_dir=out, per_device_train_batch_size=1, learning_rate=2e-5, report_to="none"),
    train_dataset=examples,
    processing_class=tokenizer,
    callbacks=[SecondMomentsCallback()],
)
trainer.train()
trainer.save_model()
