"""Stands in for torchvision while timm, the oracle, is imported: the names that its code mentions, and no more.

torchvision has no CPU build beside PyTorch's, so it cannot be installed here. What timm's preparation of a picture for
evaluation calls is written out from torchvision's source; everything else raises when it is used.
"""

__version__ = "0"
