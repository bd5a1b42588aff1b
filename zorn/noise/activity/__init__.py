"""Noise on activities: its sites, and cells whose state is one."""
