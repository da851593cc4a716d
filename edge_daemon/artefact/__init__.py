"""Backbones, banks and recipes on disk: schema, digests, load order, store."""
