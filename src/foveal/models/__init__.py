"""Whole networks by name: every timm model, and our own; and what images each is made for."""

from foveal.models.create import OWN, READS_FILES, create_model, list_models
from foveal.models.data_config import data_config

__all__ = ["OWN", "READS_FILES", "create_model", "data_config", "list_models"]
