"""Metamorphic relations: how a kernel's output changes when its inputs do, each module one family of them."""
