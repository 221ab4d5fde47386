"""Referring video segmentation: Ref-DAVIS-17, Refer-YouTube-VOS and MeViS, read and written in their official
layouts, and their submission archives."""
