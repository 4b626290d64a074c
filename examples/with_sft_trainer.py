"""SFTTrainer, whose expert keeps its second moments: `python with_sft_trainer.py MODEL chats.jsonl EXPERT`."""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from harness.curvature import SecondMomentsCallback

model_name, data, out = sys.argv[1:]
trainer = SFTTrainer(
    model=model_name,
    args=SFTConfig(output_dir=out, learning_rate=2e-5, report_to="none", bf16=torch.cuda.is_available()),
    train_dataset=load_dataset("json", data_files=data, split="train"),
    callbacks=[SecondMomentsCallback()],
)
trainer.train()
trainer.save_model()
