"""TransformerLens' hooks on what each head's q, k and v, and each MLP, reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def separate_inputs(model: TransformerBridge) -> Iterator[None]:
    """Within it every block runs `hook_q_input`, `hook_k_input`, `hook_v_input`, `hook_mlp_in`.

    They cost a copy of the stream for each head. Afterwards the model's flags are as they were.

    Raises:
        NotImplementedError: TransformerLens has no such hooks for this architecture.
    """
    together, separate, mlp = (
        bool(getattr(model.cfg, name, False))
        for name in ("use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")
    )
    try:
        if together:  # TransformerLens allows only one of the two
            model.set_use_attn_in(False)
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        yield
    finally:
        model.set_use_split_qkv_input(separate)
        model.set_use_hook_mlp_in(mlp)
        if together:
            model.set_use_attn_in(True)
