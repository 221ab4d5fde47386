"""CLIP alone: what a choice of visual tokens follows from, without the model that would read them."""

from backbones.tower.seeing import ClipTower, load_tower

__all__ = ["ClipTower", "load_tower"]
