"""Style transfer: pictures with the content of one photograph and the style of another, as a VGG19 sees them.

Source: Gatys, Ecker, Bethge (2016), "Image Style Transfer Using Convolutional Neural Networks"; the transform
network is that of Johnson, Alahi, Fei-Fei (2016).
"""

from trainer.tasks.style_transfer.extractor import vgg19
from trainer.tasks.style_transfer.models import trained_images, transform_network
from trainer.tasks.style_transfer.targets import target_images
from trainer.tasks.style_transfer.task import style_transfer

__all__ = ["style_transfer", "target_images", "trained_images", "transform_network", "vgg19"]
