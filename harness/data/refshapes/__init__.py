"""RefShapes: generated scenes in three families that mirror RefCOCO, RefCOCO+ and RefCOCOg."""
