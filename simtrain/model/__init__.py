"""Model shapes to parameters, FLOPs and bytes. Pure arithmetic."""

from simtrain.model.transformer import MLA, MoE, Transformer

__all__ = ["MLA", "MoE", "Transformer"]
