"""Arrays in, arrays out: the three parts of SmolVLM in MLX. Knows nothing of files, pictures, text or tokenizers.

Shape legend, used in every comment of this package:

    N   tiles (crops of pictures, the global tiles included)
    P   patches a tile           1024 (256M, 500M: 32 x 32 of 16 px)    729 (2.2B: 27 x 27 of 14 px)
    S   image tokens a tile      64                                     81
    B   batch                    T   tokens of the prompt
    V   vocabulary               Dv  vision width     Dt  decoder width
    h   heads                    k   key-value heads  d   width of one head

    pixel_values (N, H, W, 3) -> image_features (N, P, Dv) -> image_tokens (N, S, Dt) -> embeddings (B, T, Dt)
    -> logits (B, T, V)
"""

from .language import KVCache, QuantizedKVCache
from .smolvlm import SmolVLM

__all__ = ["KVCache", "QuantizedKVCache", "SmolVLM"]
