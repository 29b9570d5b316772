"""Regraft: restore the weights, replace the optimizer, and prove both."""

from trainer import comparison, models  # what they define becomes bindable by gin
from trainer.data.data import in_memory, resize_image, scale_image, tfds_data
from trainer.errors import UserError
from trainer.optimizers.groups import group
from trainer.optimizers.lora import lora
from trainer.optimizers.phases import phase, plateau, swats
from trainer.optimizers.schedules import inverse_square_root, one_cycle, warmup
from trainer.restore import RestoreError, RestoreReport, restore_weights
from trainer.run.result import TrainResult
from trainer.run.settings import Finetune, Intervals, Invocation, Limits, Restore, Saving, Step
from trainer.run.train import train
from trainer.tasks.custom_loss import custom_loss
from trainer.tasks.style_transfer import style_transfer, target_images, trained_images, transform_network, vgg19
from trainer.tasks.supervised import supervised

__all__ = [
    "Finetune",
    "Intervals",
    "Invocation",
    "Limits",
    "Restore",
    "RestoreError",
    "RestoreReport",
    "Saving",
    "Step",
    "TrainResult",
    "UserError",
    "comparison",
    "custom_loss",
    "group",
    "in_memory",
    "inverse_square_root",
    "lora",
    "models",
    "one_cycle",
    "phase",
    "plateau",
    "resize_image",
    "restore_weights",
    "scale_image",
    "style_transfer",
    "supervised",
    "swats",
    "target_images",
    "tfds_data",
    "train",
    "trained_images",
    "transform_network",
    "vgg19",
    "warmup",
]
