"""Copies of networks; they live in the root."""

from ..copies import copied as copied
