"""Who somebody is, who may read what, and where the keys are. Start with THREATS.md."""
