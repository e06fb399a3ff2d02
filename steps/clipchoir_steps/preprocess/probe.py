"""A digest of what decoding and resizing make of fixed images: which pixels an embedding was computed from.

Releases of Pillow differ: 13.0 resizes images that are higher than wide in another order than 12.3, and scores move by
1e-3. So a repository says which pixels it was built with, and `preprocess` refuses to load where it makes others.
"""

import base64
import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from clipchoir_steps.preprocess.decode import DecodedImage, Limits, decode

MADE_BY = f"Pillow {pillow_version}"
# Wide, high and neither; smaller and larger than what encoders take.
_SHAPES = ((97, 61), (61, 97), (640, 480), (480, 640), (333, 500), (150, 400), (700, 16), (16, 700), (223, 225))
_LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, max_side=1 << 10)
# A baseline JPEG (4:2:0), a progressive one (4:2:2) and a lossy WebP, of 56x40 pixels.
_FILES = (
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQ
    YEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAoADgD
    ASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAABAADBQb/xAArEAABAwMCBAYCAwAAAAAAAAABAAIDESExBBIFEyJRBjJBYYGhFHFCkdH/xAAa
    AQADAQADAAAAAAAAAAAAAAADBAUGAAEH/8QAKxEAAQQBAQUHBQAAAAAAAAAAAQACAxEhBAUSUWFxIjFBgZHB8BMyoeHx/9oADAMBAAIRAxEAPwDw
    jYdgDWjqOfcpUWnayhIq7ukQw1mNRgWW3K9lWk1DWNMnDA5V7pWOa8LJjUlkDZMih7qZFdNgiwp7dqGV24/IVBkldyxihuY3hJZAdtx1MSTD1MNL
    pUcI5otkXXHP7RZfca8jkeYwnY5/FFbCL/rcpdGGK8fypBYDPlr93y4i+PNOCegvORQbZrjIot/x74SmQ7x2eM/6lRMBoHih7+iJJIxzSwnByD7d
    V5/HOVz2ae+E2DT4smM07K+Zv9pLI2ts0bj9Ke2FkTt5zhSoM1FovIq9jQLjKWyEc2pHlF1tFDt6n3J+0mOA0A/k7K6dP2i6sk36YA6nCdjmRoYA
    DHX0qpdJkIJsM9IUhM1L4sRtv+V7JwTAjJXnGQVcLbXhJZED52UPcKUjyPIa53P1+cqWDicVo5umgjMk0rI2Ny59gPkrN/GOEabbXWRPLsFnWPnb
    WilIehDdS/dIAz4fu1oNnaVs5G+T8Cxd4p4XFMRt1ExGHMYKfZB+kd3i6UscIdCxkxp1Ok3Bo/VB6e6lKwNnwNJFXR4/nqtRBs3TtqxfUrGTxNxW
    Xby3wwUBA5cdajud1VKUgfRir7AqzNNABQYPQL//2Q==
    """,
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQ
    YEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wgARCAAoADgD
    ASEAAhEBAxEB/8QAFwABAQEBAAAAAAAAAAAAAAAAAwIABf/EABgBAQEBAQEAAAAAAAAAAAAAAAMEBQEC/9oADAMBAAIQAxAAAAHgrf5VPDIk9C4H
    5t1YlPFSyut7rc6+4tPFSrOt7jc1UxVTw6IFC425q1YtSdUG2jG7of/EAB8QAAMAAQQDAQAAAAAAAAAAAAABESECAxIUBBATIv/aAAgBAQABBQKC
    0+pRIhBLMIJEEspCWeJxFpITKRBHEgkJEIQ/KX22tJ2tpPtsfk7rP//EABsRAAMAAwEBAAAAAAAAAAAAAAABAgMEETFC/9oACAEDAQE/AZolksTJ
    YmSzpNColnSWSyWKiWY4u/EYtR/TJ1sSXh//xAAmEQACAQMCBAcAAAAAAAAAAAAAAQIDISIRQRITMTIEUWGBkaHw/9oACAECAQE/Aba32HUVTFjd
    idXh6E54EJ5DeT9ijOxPsZBZDeTfqUpRirs5l9X0Y5QhdPUb2/XJR4xy+CMYvsuLwz3ZyKfn9n//xAAdEAACAQQDAAAAAAAAAAAAAAAAAREgITBx
    AjJC/9oACAEBAAY/AqIwqtYpbg7o9MtwvstC0j//xAAhEAEAAgEDBQEBAAAAAAAAAAABABEhEDFRQWFxkdGx8P/aAAgBAQABPyErg3gHmBAx1UMe
    5D7140W81Up0jRbwh6tMX8wcwHJAG2ZTlntYfMM+GHIiUkDqxpZL4z+R2HuhGprObapSW/s6z//aAAwDAQACAAMAAAAQxVLYPlqR9XGDEP/EACER
    AAICAQIHAAAAAAAAAAAAAAABESEQMUFRgZGhscHw/9oACAEDAQE/EAgtYZkXlZTjcVFJN4GvDAsO9XjroMw4lwV/dyAOXN+j/8QAJREBAAEDAgYC
    AwAAAAAAAAAAAQARIUExUWFxgZGxwaHR4fDx/9oACAECAQE/ELFh57wx/i7xG7W48y54Ybu1lJJlYsHS4/I/Merp4IagYWPB7Cg7F/EWUjTVNiIO
    YOCQ5AsA1v8AUQN2eftmVdtD98UhFVLtTI/XrtFKlXJDqtCPxNb03ccKFd/iWKW9R7NCmJ//xAAhEAACAwABBQADAAAAAAAAAAAAAREhMVFBYXGB
    oRDB0f/aAAgBAQABPxCCkW3uyJbU8vxbih8lzSP0hRfgSNKxUeJeZjsxYiNarLfY3Fqg1hdhlRdZWtFXaxYlOXSSLwu/0W4Sw+ehN/YVCS+HMW/o
    2EvIKbpbQnSoRb6b5QzaapS9suzeHX7tA1KQsTj60/gypmjATxC6dzDKmlZK5dj/2Q==
    """,
    """
    UklGRkACAABXRUJQVlA4IDQCAAAQDwCdASo4ACgAPtFcok0oJSMiMBVZWQAaCWwAnTKEd9+2eYxWf8vrqhO4TmYjfrd7x/936czzmfYY9Dnyxv23
    +E39tPScBJi/szKNu8yJEp2XWnQ9ccslwQRvWIwm0Lnf5IKKDWGCf/E2BQbxFUtoES1h/JHYDm5zpHtVojidZWwA/vbfeTIhhgFwTchcD/gzv/H2
    xoSm47LAvEMOe/yUZ/MYurz9ZB9GvRgg8GPuzeJmFHjapr5ZDkhvVzCYo+kPxxXsVlGaN17lJcIEUgd83rpTnducb/+sbxORwweM9Et5MTRcRRSW
    ZhriKbreRhyLIhEygujQz91CnB4OqMg4011o0i2wZ+SGfv4qGYDBR/XkOy+kUk7vvE0mzLl2QmsadYGOYrhVwj2+VcPuqda3FucnCzQRSPyUlYDl
    /owK4E8BpMUQ2qKGlR6hdnY5tH2zy0mN9vGqWWRYwQsLfhtyAA1N7qFQsJQzJ3/kfb59dHg6kPcs75fQip9YsB2ONdK5I2/G/VH1ANNaYp17rflu
    ZE5r4cbIat7gsB97wGQybyejBoCURgwJlwZ+5QtsNfRXagvKGAGthl0j4bHlL5ubEbOs9VDnOrH5jNJH52aNMXalv3YEy4NXCNMube1WjXP+uG9B
    z1zfRLuXiGHtzYNdDDAWIw4iLFi63B2dXfggBCswZo1Ws81XZrOhmF2+q022SrkqMrK95cEPK+Ngf+2/2zr0AH/i0QJid+pmD9xegDbAAAA=
    """,
)


def pixels_digest(size: int, scaled_decoding: bool) -> str:
    """Identity of the pixels that an encoder is given, in hex.

    Args:
        size: that images are resized to, pixels.
        scaled_decoding: whether large JPEGs are decoded at a fraction of their size.
    """
    digest = hashlib.sha256(b"scaled" if scaled_decoding else b"exact")
    pictures = [decode(base64.b64decode(file), _LIMITS) for file in _FILES]
    pictures += [DecodedImage(Image.fromarray(_noise(*shape))) for shape in _SHAPES]
    for picture in pictures:
        digest.update(np.asarray(picture.resized(size)).tobytes())
    return digest.hexdigest()[:16]


class OtherPixelsError(Exception):
    """This machine would make other pixels than the repository was built with; the message says what to do."""


def check_pixels(expected: Mapping[int, str], made_by: str, scaled_decoding: bool) -> None:
    """Compare this machine's pixels with a repository's.

    Args:
        expected: digests by size, as the repository's config has them.
        made_by: what made them.
        scaled_decoding: whether large JPEGs are decoded at a fraction of their size.

    Raises:
        OtherPixelsError: they differ.
    """
    for size, digest in expected.items():
        if pixels_digest(size, scaled_decoding) != digest:
            raise OtherPixelsError(
                f"{MADE_BY} decodes or resizes images to {size} pixels otherwise than {made_by}, with which this "
                "repository was built, so that embeddings and scores would move: install that version, or have the "
                "repository take this one: clipchoir-export refresh"
            )


def _noise(width: int, height: int) -> np.ndarray:
    """Bytes that are the same everywhere: integer arithmetic alone. The hash is splitmix64's."""
    numbers = np.arange(width * height * 3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (numbers >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)
