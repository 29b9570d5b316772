"""How a model is trained: optimizers, groups, phases, schedules, averages, LoRA, carried state."""
