"""Advice on ranks as PEFT's settings, and adapters written at other ranks."""
