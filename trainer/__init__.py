"""Regraft: restore the weights, replace the optimizer, and prove both."""

from trainer import comparison, models  # what they define becomes bindable by gin
from trainer.data.augment import keras_layers
from trainer.data.data import in_memory
from trainer.data.example_files import array_record, records
from trainer.data.image_folder import image_folder
from trainer.data.mixture import balanced, mixture
from trainer.data.mixup import cutmix, mixup, one_hot
from trainer.data.padding import bucket_by_length, pad_to, trim_padding
from trainer.data.table import table
from trainer.data.text import tokenize
from trainer.data.tfds_data import resize_image, scale_image, tfds_data
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
    "array_record",
    "balanced",
    "bucket_by_length",
    "comparison",
    "custom_loss",
    "cutmix",
    "group",
    "image_folder",
    "in_memory",
    "inverse_square_root",
    "keras_layers",
    "lora",
    "mixture",
    "mixup",
    "models",
    "one_cycle",
    "one_hot",
    "pad_to",
    "phase",
    "plateau",
    "records",
    "resize_image",
    "restore_weights",
    "scale_image",
    "style_transfer",
    "supervised",
    "swats",
    "table",
    "target_images",
    "tfds_data",
    "tokenize",
    "train",
    "trained_images",
    "transform_network",
    "trim_padding",
    "vgg19",
    "warmup",
]
