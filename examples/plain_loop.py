"""A plain torch loop whose expert keeps its second moments: `python plain_loop.py MODEL chats.jsonl EXPERT`."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.curvature import save_second_moments
from harness.curvature.examples import read_examples

model_name, data, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
examples = read_examples(Path(data), tokenizer, max_length=1024)
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

for example in examples:
    loss = model(input_ids=example.input_ids[None], labels=example.labels[None]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model.save_pretrained(out)
tokenizer.save_pretrained(out)
save_second_moments(optimizer, model, out)
