"""Compose, Resize, CenterCrop, ToTensor and Normalize as torchvision does them with Pillow."""

from . import functional


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    def __init__(self, size, interpolation=functional.InterpolationMode.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        return functional.resize(image, self.size, self.interpolation)


class CenterCrop:
    def __init__(self, size):
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def __call__(self, image):
        (height, width), (tall, wide) = self.size, (image.height, image.width)
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return functional.crop(image, top, left, height, width)


class ToTensor:
    def __call__(self, image):
        return functional.to_tensor(image)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, tensor):
        return (tensor - self.mean[:, None, None]) / self.std[:, None, None]
