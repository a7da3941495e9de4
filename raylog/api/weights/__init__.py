"""Weights of a model that trains: published version by version, of which only what changed travels, and subscribed to.

A version is what a checkpoint is, tensors in units of one chunk (codec/units.py), with deltas beside them
(codec/delta.py). Each large tensor, and each chunkful of small ones, goes into it in one of three ways: named again as
it was where it did not change, with one delta more where few of its numbers did, or anew. So a version holds all that
it is read from, and is read like any other; and a node that has the one before lacks only what is new.
"""
